"""`bough run`: a machine for one command, deleted afterwards however the command ends."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import pytest

import bough
from bough.errors import NotFound
from tests.acceptance.conftest import Cli
from tests.conftest import MEMORY
from tests.waiting import wait_until


def test_output_status_and_nothing_afterwards(cli: Cli, debian: str) -> None:
    before = cli.names()
    done = cli(
        "run",
        "--memory",
        MEMORY,
        debian,
        "--",
        "sh",
        "-c",
        "cat; uname -s; exit 7",
        stdin=b"in ",
        check=False,
    )
    assert done.returncode == 7, done.stderr
    assert done.stdout == b"in Linux\n"
    assert cli.names() == before


def test_a_run_says_why_it_is_emulated(cli: Cli, debian: str, gone: list[str]) -> None:
    """Each run does, also one that forks the booted snapshot or takes a standby machine."""
    done = cli("run", "--memory", MEMORY, debian, "--", "true")
    gone.append("kept-two")
    kept = cli("run", "--name", "kept-two", "--memory", MEMORY, debian, "--", "true")
    note = cli.json("info", "kept-two")["accelerator_note"]
    gone.append("kept-three")
    forked = cli("fork", "kept-two", "kept-three")
    for each in (done, kept, forked):
        told = [line for line in each.stderr.decode().splitlines() if line.startswith("note: ")]
        assert told == ([f"note: {note}"] if note else [])
    asked = cli("run", "--memory", MEMORY, "--accelerator", "tcg", debian, "--", "true")
    assert b"note: " not in asked.stderr


def test_keep_and_name(cli: Cli, debian: str, gone: list[str]) -> None:
    gone.append("kept-one")
    cli("run", "--name", "kept-one", "--memory", MEMORY, debian, "--", "touch", "/root/here")
    assert "kept-one" in cli.names()
    if cli.json("info", "kept-one")["state"] == "stopped":
        cli("start", "kept-one")
    assert cli("exec", "kept-one", "--", "test", "-e", "/root/here").returncode == 0
    cli.error("run", "--name", "kept-one", debian, "--", "true", says="kept-one", hint="another name")


def test_the_file_names_the_image(cli: Cli, debian: str, tmp_path: Path) -> None:
    spec = tmp_path / "machine.toml"
    spec.write_text(f'name = "of-file"\nimage = "{debian}"\nmemory = "{MEMORY}"\nhostname = "filed"\n')
    assert cli("run", "--file", spec, "--", "hostname").stdout == b"filed\n"
    assert "of-file" not in cli("list").stdout.decode()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_interrupted_while_it_runs(cli: Cli, debian: str, how: signal.Signals) -> None:
    before = cli.names()
    command = ("run", "--memory", MEMORY, debian, "--", "sh", "-c", "echo started; sleep 3600")
    with cli.popen(*command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"started\n"
        process.send_signal(how)
        process.wait(30)
    if how is signal.SIGINT:
        assert process.returncode in (130, -signal.SIGINT)
    wait_until(lambda: cli.names() == before)


@pytest.mark.parametrize("after_s", [0.3, 1.5, 4.0])
def test_interrupted_while_it_starts(cli: Cli, debian: str, after_s: float) -> None:
    """The interruptions are during creation, QEMU's start and the boot."""
    before = cli.names()
    with cli.popen("run", "--memory", MEMORY, debian, "--", "true", stderr=subprocess.PIPE) as process:
        time.sleep(after_s)  # the test is about the moment
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=30)
    assert b"Traceback" not in told
    wait_until(lambda: cli.names() == before)


def test_a_command_that_is_not_there_leaves_nothing(cli: Cli, debian: str) -> None:
    before = cli.names()
    assert cli("run", "--memory", MEMORY, debian, "--", "no-such-command", check=False).returncode == 127
    assert cli("run", "-n", "--memory", MEMORY, debian, "--", "cat", stdin=b"not read").stdout == b""
    assert cli.names() == before


def test_later_runs_go_on_from_the_booted_image(hv: bough.Hypervisor, cli: Cli, debian: str) -> None:
    """Each run has its own identity and its spec's settings; users do not see the booted snapshot."""
    script = (
        "cat /proc/sys/kernel/random/boot_id /etc/machine-id; hostname; head -c 16 /dev/urandom | od -An -tx1"
    )
    told = []
    taken = {snapshot.id for snapshot in hv.snapshots()}
    for name in ("one", "two"):
        with hv.run(
            debian, memory=MEMORY, hostname=name, files=[{"path": "/root/mine", "content": name}]
        ) as vm:
            assert vm.read_text("/root/mine") == name
            assert vm.info().raw["forked_from"] is None
            told.append(vm.shell(script).stdout.splitlines())
            ephemeral = vm.name
    assert ephemeral not in cli.names()
    one, two = told
    assert one[0] == two[0], "both went on from one boot"
    assert (one[2], two[2]) == ("one", "two")
    assert one[1] != two[1]
    assert one[3] != two[3]
    assert {snapshot.id for snapshot in hv.snapshots()} == taken
    cold = cli.text("run", "--cold", "--memory", MEMORY, debian, "--", "sh", "-c", script)
    assert cold.splitlines()[0] != one[0]


def test_what_was_discarded_is_gone_for_everybody(hv: bough.Hypervisor, cli: Cli, debian: str) -> None:
    """The deletion is asynchronous, and no client sees the machine meanwhile."""
    for _ in range(3):
        with hv.create_from({"image": debian, "memory": MEMORY}, name="passing", ephemeral=True):
            assert "passing" in cli.names()
        assert "passing" not in cli.names()
        with pytest.raises(NotFound):
            hv.machine("passing")
    assert hv.doctor_store()["clean"]


def test_a_machine_that_is_held_outlives_the_service(hv: bough.Hypervisor, cli: Cli, debian: str) -> None:
    with hv.run(debian, memory=MEMORY) as vm:
        vm.shell("echo here > /dev/shm/kept", check=True)
        cli("serve", "--stop")
        assert vm.name in cli.names()  # which starts the next service
        wait_until(lambda: vm.info().agent == "answering")
        assert vm.read_text("/dev/shm/kept") == "here\n"
    assert vm.name not in cli.names()


def test_a_bound_holds_for_the_boot_of_the_image(cli: Cli, debian: str) -> None:
    """The memory size is unique: the first run makes the booted snapshot for later runs."""
    words = ("run", "--timeout", "1s", "--memory", "400MiB", debian, "--", "true")
    cli.error(*words, says="did not boot within 1 s", hint="--timeout")
