"""The pytest plugin without a guest: options, keys of snapshots, slots, the record of steps, the page."""

from __future__ import annotations

import _socket
import json
import multiprocessing
import os
import re
import socket
import subprocess
import sys
import threading
import time
from contextlib import closing
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, cast

import pytest

from bough.client.process import Process
from bough.contract.answers import MachineInfo
from bough.contract.commands import Command
from bough.contract.machines import GetMachine, PauseMachine, StartMachine
from bough.errors import AgentUnavailable, DeadlineExceeded, NotFound
from bough.guest_checks import describe_wait, file_exists, render_wait
from bough.pytest_plugin.evidence import Evidence, command_for, directory_name, render_steps
from bough.pytest_plugin.forks import LiveFork
from bough.pytest_plugin.locks import Slots, alone, forks_of_host, lock_directory
from bough.pytest_plugin.machine_snapshots import read_spec
from bough.pytest_plugin.options import Source
from bough.pytest_plugin.preparation import KeptSnapshot, Prepared, digest_of, suite_of
from bough.pytest_plugin.recording import (
    MOST_STEPS,
    RecordedCommand,
    Recorder,
    RecordingConnection,
    Step,
    plain_text,
)
from bough.pytest_plugin.report import render_page
from bough.pytest_plugin.source_text import source_of
from tests.unit.api_peer import Answer, ApiPeer, SocketPeer

pytest_plugins = "pytester"

#: A checkout that was installed before the plugin existed has no entry point.
PLUGIN = ["-p", "no:asyncio"]
if not entry_points(group="pytest11", name="bough"):
    PLUGIN += ["-p", "bough.pytest_plugin"]


# -- pytest ---------------------------------------------------------------------------------------------


def test_a_run_without_machines_is_not_disturbed(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_nothing(): pass")
    done = pytester.runpytest_inprocess(*PLUGIN, "--strict-markers")
    done.assert_outcomes(passed=1)
    assert "bough: report" not in done.stdout.str()
    assert not (pytester.path / "bough-artifacts").exists()


def test_the_plugin_imports_little() -> None:
    code = (
        "import sys, pytest; before = set(sys.modules)\n"
        "import bough.pytest_plugin, bough.pytest_plugin.run, bough.pytest_plugin.report\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "assert not new & {'h11', 'pydantic', 'httpx', 'rich', 'click', 'cryptography'}, new\n"
        "assert 'bough.client' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_options_are_told(pytester: pytest.Pytester) -> None:
    told = pytester.runpytest_inprocess(*PLUGIN, "--help").stdout.str()
    for option in ("--bough-keep", "--bough-bundle", "--bough-artifacts", "--bough-report", "--bough-fresh"):
        assert option in told
    assert "bough(machine, project=" in pytester.runpytest_inprocess(*PLUGIN, "--markers").stdout.str()


def test_a_missing_source_is_one_sentence(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_one(bough_machine): pass")
    done = pytester.runpytest_inprocess(*PLUGIN)
    done.assert_outcomes(errors=1)
    done.stdout.fnmatch_lines(["bough_machine needs an image or a spec file", "hint: set `bough_machine = *"])
    assert "Traceback" not in done.stdout.str()


@pytest.mark.parametrize(
    ("ini", "says"),
    [
        ("bough_scope = test", "bough_scope is 'test', and has to be one of function, class"),
        ("", "1 or more"),
    ],
)
def test_wrong_settings(pytester: pytest.Pytester, ini: str, says: str) -> None:
    pytester.makeini(f"[pytest]\n{ini}\n")
    pytester.makepyfile("def test_one(bough_machine): pass")
    done = pytester.runpytest_inprocess(*PLUGIN, *([] if ini else ["--bough-forks=0"]))
    assert done.ret != 0
    assert says in done.stdout.str() + done.stderr.str()


# -- keys of prepared snapshots ---------------------------------------------------------------------------

VERSION = "1.0"


def write_config(vm: Any) -> None:
    vm.write_file("/etc/app", VERSION)


def prepare(vm: Any) -> None:
    write_config(vm)


def test_the_source_of_a_preparation_has_what_it_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    before = source_of(prepare)
    assert "write_config(vm)" in before
    assert "/etc/app" in before
    assert "VERSION='1.0'" in before
    monkeypatch.setattr(sys.modules[__name__], "VERSION", "2.0")
    assert source_of(prepare) != before
    assert source_of(None) == ""


def test_the_source_has_what_a_closure_holds() -> None:
    def make(package: str) -> Any:
        return lambda vm: vm.succeed(f"apt-get install {package}")

    assert source_of(make("nginx")) != source_of(make("apache2"))
    assert source_of(make("nginx")) == source_of(make("nginx"))


def test_a_function_that_calls_itself_has_a_source() -> None:
    def again(vm: Any) -> None:
        again(vm)

    assert "again(vm)" in source_of(again)


def test_the_spec_has_the_content_of_its_files(tmp_path: Path) -> None:
    (tmp_path / "motd").write_text("one")
    (tmp_path / "web.toml").write_text(
        'name = "web"\nimage = "debian:12"\nmemory = "1GiB"\n[[files]]\npath = "/etc/motd"\nsource = "motd"\n'
    )
    source = Source("web.toml", tmp_path, {"memory": "512MiB"})
    before = read_spec(source)
    assert (before["memory"], before["image"], "name" in before) == ("512MiB", "debian:12", False)
    (tmp_path / "motd").write_text("two")
    assert digest_of(read_spec(source)) != digest_of(before)
    ports = read_spec(Source("a", tmp_path, {"ports": ["8080:80", "22", {"guest_port": 1, "host_port": 2}]}))
    assert ports["ports"] == ["0:80", "0:22", {"guest_port": 1, "host_port": 0}]
    assert suite_of(source, prepare) == suite_of(Source("web.toml", tmp_path, {}), prepare)
    assert suite_of(source, prepare) != suite_of(source, None)


@dataclass
class FakeSnapshot:
    id: str
    label: str
    message: str
    all: list[FakeSnapshot]

    def info(self) -> FakeSnapshot:
        return self

    def delete(self) -> None:
        self.all.remove(self)

    def fork(self, *, ephemeral: bool) -> str:
        assert ephemeral
        if self not in self.all:
            raise NotFound("no such snapshot")
        return f"fork of {self.id}"


class FakeSnapshots:
    """Snapshots in memory, with the contract of preparation.Snapshots."""

    def __init__(self) -> None:
        self.all: list[FakeSnapshot] = []
        self.made = 0
        self.image = "one"

    def describe(self, source: Source) -> object:
        return {"name": source.name, "image": self.image}

    def find(self, reference: str) -> FakeSnapshot:
        for one in self.all:
            if reference in (one.id, one.label):
                return one
        raise NotFound("no such snapshot")

    def make(self, source: Source, prepare: Any, label: str, message: str) -> FakeSnapshot:
        self.made += 1
        self.all.append(FakeSnapshot(f"{self.made:04}", label, message, self.all))
        return self.all[-1]

    def list(self) -> list[KeptSnapshot]:
        return [KeptSnapshot(one.id, one.id, one.message) for one in self.all]


def test_a_snapshot_is_made_once_and_found_again(tmp_path: Path) -> None:
    store, source = FakeSnapshots(), Source("web", tmp_path, {})

    def prepared(run: str, *, fresh: bool = False) -> Prepared[FakeSnapshot]:
        return Prepared(store, tmp_path, tmp_path, run=run, fresh=fresh)

    worker, other = prepared("1"), prepared("1")
    snapshot = worker.find(source, None)
    assert snapshot.label.startswith("pytest-")
    assert worker.find(source, None) is snapshot
    assert other.find(source, None) is snapshot
    assert prepared("2").find(source, None) is snapshot
    assert worker.find(source, prepare) is not snapshot
    assert store.made == 2

    fresh = prepared("3", fresh=True).find(source, None)
    assert fresh is not snapshot
    assert prepared("3", fresh=True).find(source, None) is fresh, "another worker of the run"

    fresh.delete()
    worker.forget(snapshot)
    assert worker.find(source, None).id == "0004"


def test_a_snapshot_that_another_run_has_deleted_is_made_anew(tmp_path: Path) -> None:
    store, source = FakeSnapshots(), Source("web", tmp_path, {})
    prepared = Prepared(store, tmp_path, tmp_path, run="1", fresh=False)
    snapshot = prepared.find(source, None)
    assert prepared.fork(snapshot, source, None) == "fork of 0001"
    snapshot.delete()
    assert prepared.fork(snapshot, source, None) == "fork of 0002"


def test_the_oldest_snapshots_of_a_suite_are_deleted(tmp_path: Path) -> None:
    store, source = FakeSnapshots(), Source("web", tmp_path, {})

    def prepared(run: int) -> Prepared[FakeSnapshot]:
        return Prepared(store, tmp_path, tmp_path, run=str(run), fresh=False)

    other = prepared(0).find(Source("db", tmp_path, {}), None)
    for run, store.image in enumerate("abcdef"):
        prepared(run).find(source, None)
    assert [one.id for one in store.all] == [other.id, "0005", "0006", "0007"]


# -- slots ------------------------------------------------------------------------------------------------


def hold(directory: str, ready: Any, end: Any) -> None:
    with Slots(Path(directory)).take(1, 1):
        ready.set()
        end.wait()


def test_a_slot_of_another_process_is_waited_for_and_freed_when_that_is_killed(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ready, end = context.Event(), context.Event()
    holder = context.Process(target=hold, args=(str(tmp_path), ready, end))
    holder.start()
    assert ready.wait(20)
    with pytest.raises(DeadlineExceeded, match="1 machines live") as caught:
        with Slots(tmp_path, wait_s=0).take(1, 1):
            pass
    assert str(holder.pid) in str(caught.value.hint)
    threading.Timer(0.05, holder.kill).start()
    with Slots(tmp_path, wait_s=20).take(1, 1) as waited_s:
        assert waited_s > 0
    holder.join()


def test_a_process_with_a_slot_does_not_wait_for_a_second(tmp_path: Path) -> None:
    slots = Slots(tmp_path, wait_s=0)
    with slots.take(1, 1), slots.take(3, 1) as waited_s:
        assert waited_s < 1
    with slots.take(5, 2):
        pass  # more than there are: all of them


def test_locks_are_of_this_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    directory = lock_directory()
    assert directory.stat().st_mode & 0o777 == 0o700
    with alone(directory / "one.lock"):
        assert (directory / "one.lock").read_text() == str(os.getpid())
    directory.chmod(0o777)
    with pytest.raises(Exception, match="others may write there"):
        lock_directory()


def test_forks_follow_the_host() -> None:
    assert forks_of_host(1 << 60) == 1
    assert forks_of_host(1) == 2 * len(os.sched_getaffinity(0))


# -- the record -------------------------------------------------------------------------------------------


def test_steps_are_bounded_and_have_errors() -> None:
    recorder = Recorder()
    recorder.name("m1", "web")
    with pytest.raises(ValueError, match="oh"), recorder.step("subtest", "one"):
        raise ValueError("oh\nno")
    (step,) = recorder.steps
    assert (step.failed, step.status, step.ended is not None) == (True, "ValueError: oh", True)
    for _ in range(MOST_STEPS):
        recorder.add(Step("call", "x"))
    assert (len(recorder.steps), recorder.left_out) == (MOST_STEPS, 1)
    recorder.start_over()
    assert (recorder.steps, recorder.left_out) == ([], 0)


def test_steps_as_text() -> None:
    steps = [
        Step("command", "ls /", "web", began=0.5, ended=0.75, status="0", output="bin\nboot\n"),
        Step("wait", "wait until x", "web", began=1, ended=None),
    ]
    text = render_steps(steps, 3)
    assert re.search(r"\.500 +0\.250 s  web +\$ ls /  \[0\]\n    bin\n    boot\n", text)
    assert "wait: wait until x  [still running]" in text
    assert text.endswith("3 more steps\n")


def test_output_of_a_guest_is_text() -> None:
    told = plain_text(b"\x1b[31mred\x1b[0m\x1b]0;title\x07 a\r\nb\x00\xff\tc\n")
    assert "\x1b" not in told
    assert "red" in told
    assert told.endswith("a\nb\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}\tc\n")


def test_names_and_commands() -> None:
    assert directory_name("tests/a/test_x.py::Test::test_y[a b/c]") == "tests-a-test_x.py.Test.test_y-a-b-c"
    assert directory_name("../../etc") == "etc"
    usual = Path("/var/lib/bough")
    assert command_for(usual, usual, "shell", "web") == "bough shell web"
    assert command_for(Path("/a b"), usual, "shell", "web") == "BOUGH_HOME='/a b' bough shell web"


# -- the page ---------------------------------------------------------------------------------------------


def test_the_page_is_one_file_that_no_guest_can_leave(tmp_path: Path) -> None:
    evil = "</script><script>alert(1)</script><!-- @script@"
    data = {"title": evil, "began": 0, "ended": 1, "tests": [{"id": evil, "phases": []}]}
    page = render_page(data)
    assert evil not in page
    assert page.count("<script") == 2
    assert not re.findall(r"""(?:src|href)=["']?(?!data:)\w""", page.replace("href: [", ""))
    assert "default-src 'none'" in page
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert json.loads(text) == data
    assert "@style@" not in page


def test_a_page_waits_for_no_other_time() -> None:
    began = time.monotonic()
    render_page({"tests": [{"id": str(n), "phases": [], "steps": []} for n in range(2000)]})
    assert time.monotonic() - began < 5


# -- the recording connection -----------------------------------------------------------------------------


def test_calls_are_recorded_and_looks_are_not(tmp_path: Path) -> None:
    def answer(method: str, path: str, body: bytes) -> Answer:
        if path.endswith("/start"):
            error = {"code": "not-found", "message": "no machine 'x'"}
            return 404, "application/json", [json.dumps({"error": error}).encode()]
        return 200, "application/json", [b"{}"]

    peer = ApiPeer(tmp_path / "api.sock", answer)
    recorder = Recorder()
    recorder.name("abcd", "web")
    with closing(RecordingConnection(peer.path, recorder)) as connection:
        connection.send(GetMachine(reference="abcd"))
        connection.send(PauseMachine(reference="abcd"))
        with pytest.raises(NotFound), connection.section("a section"):
            connection.send_long(StartMachine(reference="abcd", cold=True))
    peer.close()
    told = [(step.kind, step.title, step.machine, step.failed) for step in recorder.steps]
    assert told == [
        ("call", "pause machine", "web", False),
        ("subtest", "a section", "", True),
        ("call", "start machine (cold=true)", "web", True),
    ]
    assert all(step.ended is not None for step in recorder.steps)


def test_a_command_is_recorded_with_its_output_and_end() -> None:
    ours, theirs = socket.socketpair()
    recorder = Recorder()

    def serve() -> None:
        peer = SocketPeer(theirs)
        peer.accept()
        peer.next()
        peer.send_bytes(b"\x01out\n")
        peer.send_bytes(b"\x02err\n")
        peer.send_bytes(b'\x03{"exit_code": 3, "signal": null, "error": null}')

    threading.Thread(target=serve, daemon=True).start()
    stream = ours.detach()
    socket_of = _socket.socket(fileno=stream)
    command = RecordedCommand(socket_of, "/x", lambda title, kind: recorder.add(Step(kind, title, "web")))
    with Process(command, Command(argv=["sh", "-c", "do it"])) as process:
        assert process.wait().code == 3
    (step,) = recorder.steps
    assert (step.kind, step.title, step.status, step.failed) == ("command", "do it", "exit 3", True)
    assert step.output == "out\nerr\n"
    assert step.ended is not None


def test_a_wait_is_recorded_by_its_name() -> None:
    argv = render_wait(file_exists("/a"))
    assert describe_wait(argv) == "wait until /a exists"
    assert describe_wait(["sh", "-c", "x", "bough: wait until"]) is None
    assert describe_wait([]) is None


# -- evidence ---------------------------------------------------------------------------------------------


class FakeMachine:
    """A machine for Evidence. The journal cannot be read."""

    def __init__(self, api: Any, machine_id: str, *, name: str) -> None:
        self.id = machine_id
        self.name = name

    def info(self, *, look: bool = False) -> MachineInfo:
        data = {"id": self.id, "name": self.name, "state": "running", "vnc": "/run/vnc.sock"}
        rest = {
            "created": "",
            "vcpus": 1,
            "memory_bytes": 1,
            "image": "",
            "image_digest": "",
            "hardware": {},
            "spec": {},
        }
        return MachineInfo.from_dict(data | rest)

    def logs(self, source: str = "console", *, tail_bytes: int = 0) -> str:
        return "\x1b[1mbooted\x1b[0m\r\n" if source == "console" else ""

    def screenshot(self) -> bytes:
        return b"\x89PNG picture"

    def shell(self, script: str, *, timeout: float) -> Any:
        raise AgentUnavailable("no agent answers")

    def export(self, path: Path) -> None:
        path.write_text("bundle")


def test_evidence_of_a_machine(tmp_path: Path) -> None:
    machine: Any = FakeMachine(None, "m1", name="web")
    fork = LiveFork("bough_machine", machine, {"": machine})
    (tmp_path / "test_a").mkdir()
    (tmp_path / "test_a" / "of an earlier run").touch()
    evidence = Evidence(tmp_path / "test_a", cast(Any, object()))
    evidence.collect(fork)
    evidence.bundle(fork)
    evidence.close()
    names = ["missing.txt", "web.bough", "web/console.txt", "web/machine.json", "web/screen.png"]
    assert evidence.files() == names
    assert (tmp_path / "test_a/web/console.txt").read_text() == "booted\n"
    assert (tmp_path / "test_a/missing.txt").read_text() == "web: journal.txt: no agent answers\n"
