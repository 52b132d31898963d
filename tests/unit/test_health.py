"""Health checks: the command of a guest, run by this host's sh, and the host's side."""

from __future__ import annotations

import asyncio
import http.server
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from bough.errors import AgentUnavailable, CheckFailed, MachineFailed
from bough.guest.session import ExecRequest, ExitStatus
from bough.guest_checks import GAVE_UP, Attempts
from bough.machines.record import MachineRecord
from bough.machines.state import State
from bough.progress import Progress
from bough.projects.health import Health, HealthChecks
from bough.projects.health_command import check_of, longest_s, render_look, render_start, render_wait
from bough.spec.project.healthcheck import HealthCheckSpec

QUICK = {"interval": "50ms", "start_interval": "50ms", "start_period": 0, "timeout": "5s", "retries": 2}


def spec(**check: Any) -> HealthCheckSpec:
    return HealthCheckSpec.model_validate({**QUICK, **check})


def run(
    check: HealthCheckSpec, *, env: dict[str, str] | None = None, start: bool = False
) -> tuple[int, Attempts]:
    """Return the status and the attempts of a wait; `start`: in the start period."""
    done = subprocess.run(
        render_start(check) if start else render_wait(check),
        capture_output=True,
        check=False,
        timeout=30,
        env={**os.environ, **(env or {})},
    )
    attempts = Attempts()
    attempts.feed(done.stderr)
    assert done.stdout == b""
    return done.returncode, attempts


# The command in the guest


def test_a_check_that_passes_ends_the_wait_at_once(tmp_path: Path) -> None:
    status, attempts = run(spec(test="true", interval="1h"))
    assert (status, attempts.count, attempts.output) == (0, 1, "")


def test_retries_failures_in_a_row_end_the_wait() -> None:
    status, attempts = run(spec(test="echo out; echo why >&2; exit 3", retries=3))
    assert (status, attempts.count, attempts.output) == (1, 3, "out\nwhy")


def test_failures_in_the_start_period_do_not_count(tmp_path: Path) -> None:
    test = f"echo x >>{tmp_path}/n; [ $(wc -l <{tmp_path}/n) -ge 5 ]"
    status, attempts = run(spec(test=test, retries=1), start=True)
    assert (status, attempts.count) == (0, 5)


def test_a_check_that_takes_too_long_is_a_failure() -> None:
    status, attempts = run(spec(test="echo begun; exec sleep 100", timeout="1s", retries=1))
    assert status == 1
    assert attempts.output == "begun\nthe check took longer than 1 s"


def test_the_output_of_a_check_is_bounded() -> None:
    _, attempts = run(spec(test="head -c 3000000 /dev/zero | tr '\\0' x; echo; echo end; exit 1", retries=1))
    assert len(attempts.output) <= 4000
    assert attempts.output.endswith("end")


def test_a_check_ends_with_its_command(tmp_path: Path) -> None:
    test = f"sleep 60 & echo $! >>{tmp_path}/pids; echo why; exit 1"
    began = time.monotonic()
    status, attempts = run(spec(test=test))
    assert (status, attempts.count, attempts.output) == (1, 2, "why")
    assert time.monotonic() - began < 20
    for pid in (tmp_path / "pids").read_text().split():
        os.kill(int(pid), signal.SIGKILL)


def test_words_with_blanks_and_quotes_reach_the_program_unchanged(tmp_path: Path) -> None:
    words = ["CMD", "sh", "-c", 'printf "%s|" "$@"; exit 1', "sh", "a b", "$HOME", "'\"", ""]
    _, attempts = run(spec(test=words, retries=1))
    assert attempts.output == "a b|$HOME|'\"||"


def test_a_status_of_the_users_command_means_nothing_special() -> None:
    status, attempts = run(spec(test=f"exit {GAVE_UP}"))
    assert (status, attempts.count) == (1, 2)


def test_one_look_makes_one_attempt(tmp_path: Path) -> None:
    check = spec(test=f"echo x >>{tmp_path}/n; false", start_period=100, retries=5)
    assert (
        subprocess.run(render_look(check), check=False, timeout=20, stderr=subprocess.DEVNULL).returncode == 1
    )
    assert (tmp_path / "n").read_text() == "x\n"


def test_a_file(tmp_path: Path) -> None:
    assert run(spec(file=str(tmp_path)))[0] == 0
    status, attempts = run(spec(file=f"{tmp_path}/ready"))
    assert status == 1
    assert f"there is no {tmp_path}/ready" in attempts.output


def test_a_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert run(spec(port=port))[0] == 0
    status, attempts = run(spec(port=port))
    assert (status, attempts.output) == (1, f"no program listens at TCP port {port}")


class Answers(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(int(self.path.rpartition("/")[2].partition("?")[0]))
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as found:
        threading.Thread(target=found.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{found.server_address[1]}"
        found.shutdown()


WAYS = ("curl", "bash", "python3", "wget")


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str]:
    """Return an environment whose PATH has one program to read an address with."""
    for name in (request.param, "sh", "timeout", "true", "tail", "head", "sleep", "sed"):
        found = sys.executable if name == "python3" else shutil.which(name)
        if found is None:
            pytest.skip(f"needs {name}")
        (tmp_path / name).write_text(f'#!/bin/sh\nexec {found} "$@"\n')
        (tmp_path / name).chmod(0o755)
    return {"PATH": str(tmp_path)}


def test_an_address(server: str, way: dict[str, str]) -> None:
    assert run(spec(http=f"{server}/200"), env=way)[0] == 0
    assert run(spec(http=f"{server}/a/302?x=1"), env=way)[0] == 0
    status, attempts = run(spec(http=f"{server}/503"), env=way)
    assert (status, attempts.output) == (1, f"{server}/503 answers with status 503")


def test_an_address_without_a_server(way: dict[str, str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    status, attempts = run(spec(http=f"http://127.0.0.1:{port}/"), env=way)
    assert status == 1
    assert attempts.output.startswith(f"http://127.0.0.1:{port}/: ")
    assert "refused" in attempts.output.lower() or "connect" in attempts.output.lower()


def test_a_guest_without_a_program_for_addresses(tmp_path: Path, way: dict[str, str]) -> None:
    for name in WAYS:
        (tmp_path / name).unlink(missing_ok=True)
    status, attempts = run(spec(http="http://127.0.0.1/"), env=way)
    assert status == GAVE_UP
    assert "has no curl, no bash, no python3 and no wget" in attempts.output


def test_a_line_of_a_file(tmp_path: Path) -> None:
    log = tmp_path / "a log"
    pattern = "ready (to accept)? *connections$"
    status, attempts = run(spec(log={"pattern": pattern, "file": str(log)}))
    assert (status, attempts.output) == (1, f"there is no {log}")
    log.write_text("one\ntwo\n")
    status, attempts = run(spec(log={"pattern": pattern, "file": str(log)}))
    assert status == 1
    assert attempts.output == f"no line matches {pattern}; the last lines are:\none\ntwo"
    log.write_text("system ready to accept connections\n")
    assert run(spec(log={"pattern": pattern, "file": str(log)}))[0] == 0
    assert run(spec(log={"pattern": "-e ready|system", "file": str(log)}))[0] == 0


def test_a_line_of_the_journal(tmp_path: Path) -> None:
    journal = tmp_path / "journalctl"
    journal.write_text(f'#!/bin/sh\necho "$@" >{tmp_path}/asked\necho "database is ready"\n')
    journal.chmod(0o755)
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    assert run(spec(log={"pattern": "is ready", "unit": "postgresql"}), env=env)[0] == 0
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip().replace("-", "")
    asked = (tmp_path / "asked").read_text()
    assert asked == f"-m -q -o cat --no-pager -u postgresql.service _BOOT_ID={boot}\n"


def test_a_unit_that_failed_ends_the_wait(tmp_path: Path) -> None:
    systemctl = tmp_path / "systemctl"
    systemctl.write_text(
        "#!/bin/sh\n"
        "case $* in *show*) echo ActiveState=failed; echo Result=exit-code ;; *) echo more ;; esac\n"
    )
    systemctl.chmod(0o755)
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    status, attempts = run(spec(unit="nginx"), env=env, start=True)
    assert (status, attempts.count) == (GAVE_UP, 1)
    assert attempts.output == "unit nginx.service has failed (exit-code)\nmore"


def test_the_longest_wait_is_known() -> None:
    check = HealthCheckSpec(port=1, interval=10, timeout=30, retries=3, start_period=60)
    assert longest_s(check) == 3 * (10 + 30 + 5)
    assert check_of(check).what == "port 1"


# The host's side


class LocalSession:
    """A command, run by this host."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.exit = ExitStatus()
        self.lost: AgentUnavailable | None = None

    async def __aiter__(self) -> AsyncIterator[tuple[str, bytes]]:
        assert self.process.stderr is not None
        while data := await self.process.stderr.read(1000):
            yield "stderr", data
        code = await self.process.wait()
        self.exit = ExitStatus(error=self.lost) if self.lost else ExitStatus(code=code)

    async def abort(self) -> None:
        if self.process.returncode is None:
            os.killpg(self.process.pid, 9)
            await self.process.wait()


class LocalMachine:
    """A machine whose guest is this host."""

    id, name = "0123", "shop-db"
    pid = None

    def __init__(self) -> None:
        self.state = State.RUNNING
        self.record = MachineRecord.model_construct(container=None)
        self.sessions: list[LocalSession] = []
        self.has_agent = True

    def console_tail(self) -> str:
        return "login:"

    def ended_error(self, when: str) -> MachineFailed:
        return MachineFailed(f"machine '{self.name}' ended {when}")

    async def wait_ready(self, **_: Any) -> None:
        if self.state is not State.RUNNING:
            raise self.ended_error("before its agent answered")

    async def agent(self) -> LocalMachine:
        if not self.has_agent:
            raise AgentUnavailable("no agent")
        return self

    async def exec(self, request: ExecRequest) -> LocalSession:
        process = await asyncio.create_subprocess_exec(
            *request.argv, stderr=asyncio.subprocess.PIPE, start_new_session=True
        )
        self.sessions.append(LocalSession(process))
        return self.sessions[-1]

    def die(self) -> None:
        """Lose the agent's command, as at the end of QEMU."""
        self.state = State.FAILED
        self.sessions[-1].lost = AgentUnavailable("the channel broke")
        os.killpg(self.sessions[-1].process.pid, 9)


@pytest.fixture
def machine() -> LocalMachine:
    return LocalMachine()


async def until(condition: Any) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_a_machine_without_a_check_is_healthy_when_it_answers(machine: LocalMachine) -> None:
    await HealthChecks().wait_healthy(machine, None)
    assert await HealthChecks().look(machine, None) == Health("healthy")


async def test_the_wait_ends_when_the_check_passes(machine: LocalMachine, tmp_path: Path) -> None:
    checks, steps = HealthChecks(), list[Progress]()
    check = spec(test=f"[ -e {tmp_path}/ready ] || {{ echo not yet; exit 1; }}", start_period=100)
    waiting = asyncio.create_task(checks.wait_healthy(machine, check, steps.append))
    await until(lambda: any(step.detail == "not yet" for step in steps))
    assert await checks.look(machine, check) == Health("starting", "not yet")
    (tmp_path / "ready").touch()
    await waiting
    assert len(machine.sessions) == 1
    assert await checks.look(machine, check) == Health("healthy")


async def test_failures_count_after_the_start_period(machine: LocalMachine) -> None:
    check = spec(test="false", retries=2, start_period=1)
    with pytest.raises(CheckFailed, match="2 failures in a row") as error:
        await HealthChecks().wait_healthy(machine, check)
    assert error.value.attempts > 4, "checks of the start period count as attempts"
    assert len(machine.sessions) == 2
    assert machine.sessions[0].process.returncode == -9


async def test_an_unhealthy_machine_is_told_with_its_last_output(machine: LocalMachine) -> None:
    check = spec(test="echo starting; echo no disk; exit 1")
    with pytest.raises(CheckFailed) as error:
        await HealthChecks().wait_healthy(machine, check)
    told = error.value
    assert told.message.startswith(
        "machine 'shop-db' is unhealthy: test 'echo starting; echo no disk; exit 1'"
    )
    assert told.message.endswith("2 failures in a row: no disk")
    assert (told.output, told.console, told.attempts) == ("starting\nno disk", "login:", 2)
    assert await HealthChecks().look(machine, check) == Health("unhealthy", "starting\nno disk")


async def test_a_machine_that_dies_ends_the_wait(machine: LocalMachine) -> None:
    check = spec(test="false", start_period=100)
    waiting = asyncio.create_task(HealthChecks().wait_healthy(machine, check))
    await until(lambda: machine.sessions)
    machine.die()
    with pytest.raises(MachineFailed, match="before it was healthy"):
        await waiting


async def test_a_guest_that_reboots_is_checked_again(machine: LocalMachine, tmp_path: Path) -> None:
    check = spec(test=f"[ -e {tmp_path}/ready ]", start_period=100)
    waiting = asyncio.create_task(HealthChecks().wait_healthy(machine, check))
    await until(lambda: machine.sessions)
    machine.die()
    machine.state = State.RUNNING
    (tmp_path / "ready").touch()
    await waiting
    assert len(machine.sessions) == 2


async def test_a_cancelled_wait_ends_its_command(machine: LocalMachine) -> None:
    waiting = asyncio.create_task(HealthChecks().wait_healthy(machine, spec(test="false", start_period=100)))
    await until(lambda: machine.sessions)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert machine.sessions[0].process.returncode == -9


async def test_a_machine_without_an_agent_is_told(
    machine: LocalMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.has_agent = False
    monkeypatch.setattr("bough.projects.health.RETRY_S", 0.01)
    with pytest.raises(AgentUnavailable):
        await HealthChecks().wait_healthy(machine, spec(port=1))
    assert (await HealthChecks().look(machine, spec(port=1))).state == "unknown"


async def test_a_stopped_machine_has_no_health(machine: LocalMachine) -> None:
    machine.state = State.STOPPED
    assert await HealthChecks().look(machine, spec(port=1)) == Health("unknown")


async def test_a_look_is_bounded(machine: LocalMachine) -> None:
    health = await HealthChecks().look(machine, spec(test="sleep 100", timeout="100s"), within_s=0.2)
    assert health == Health("unhealthy", "the check took longer than 0.2 s")
    assert machine.sessions[0].process.returncode == -9
