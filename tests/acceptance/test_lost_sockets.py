"""Machines outlive the loss of their sockets and socket directories; clients find their service."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import bough
from bough.paths import Home
from bough.serving import read_owner
from tests.acceptance.conftest import Cli
from tests.waiting import wait_until

BOOT_ID = "/proc/sys/kernel/random/boot_id"


def service_pid(home: Home) -> int:
    owner = read_owner(home.lock)
    assert owner is not None
    assert owner.pid is not None
    return owner.pid


@pytest.fixture
def machine(cli: Cli, fork: bough.Machine) -> str:
    """Return a machine with a running process."""
    cli("exec", fork.name, "--", "sh", "-c", "sleep 1000 & echo $! > /run/job")
    return fork.name


def assert_goes_on(cli: Cli, name: str, pid: int) -> None:
    assert cli.json("info", name)["pid"] == pid
    assert cli.text("exec", name, "--", "sh", "-c", "kill -0 $(cat /run/job) && echo on") == "on"


def test_a_live_service_binds_its_socket_again(cli: Cli, bough_home: Home, machine: str) -> None:
    pid, service = cli.json("info", machine)["pid"], service_pid(bough_home)
    for lost in (bough_home.api_socket, bough_home.runtime):
        shutil.rmtree(lost) if lost.is_dir() else lost.unlink()
        began = time.monotonic()
        assert_goes_on(cli, machine, pid)
        assert time.monotonic() - began < 20, "a client waits for the time-out of a start"
        assert service_pid(bough_home) == service
        assert bough_home.runtime.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("how", ["ended", "killed"])
def test_the_next_service_finds_machines_whose_sockets_are_gone(
    cli: Cli, bough_home: Home, machine: str, how: str
) -> None:
    pid = cli.json("info", machine)["pid"]
    if how == "ended":
        cli("serve", "--stop")
    else:
        os.kill(service_pid(bough_home), signal.SIGKILL)
    shutil.rmtree(bough_home.runtime)
    assert_goes_on(cli, machine, pid)
    cli("serve", "--stop")  # the restored names also serve another service
    assert_goes_on(cli, machine, pid)


@pytest.mark.parametrize("variable", ["/nonexistent", "", None])
def test_nothing_depends_on_a_runtime_directory(
    cli: Cli, bough_home: Home, box: str, variable: str | None
) -> None:
    other = Cli({"XDG_RUNTIME_DIR": variable} if variable is not None else {})
    if variable is None:
        os.environ.pop("XDG_RUNTIME_DIR", None)
    service = service_pid(bough_home)
    assert other.text("exec", box, "--", "echo", "here") == "here"
    assert other.json("info", box)["pid"]
    assert service_pid(bough_home) == service


def test_a_linked_home_is_the_same_home(cli: Cli, bough_home: Home, box: str, tmp_path: Path) -> None:
    link = tmp_path / "a link, to: 100% ö"
    link.symlink_to(bough_home.root)
    linked, service = Cli({"BOUGH_HOME": str(link)}), service_pid(bough_home)
    assert linked.text("exec", box, "--", "echo", "here") == "here"
    assert linked.json("info", box)["id"] == cli.json("info", box)["id"]
    linked("serve", "--stop")
    assert linked.text("exec", box, "--", "echo", "here") == "here"
    assert service_pid(bough_home) != service
    assert cli.text("exec", box, "--", "echo", "here") == "here"


@contextlib.contextmanager
def hung(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def test_what_cannot_be_reached_says_so_and_lives_on_or_is_stopped_by_force(
    cli: Cli, bough_home: Home, machine: str, booted: bough.Snapshot, gone: list[str]
) -> None:
    """One service waits in vain for the QEMUs of both machines, at the same time."""
    gone.append("doomed")
    booted.fork("doomed")
    info, doomed = cli.json("info", machine), cli.json("info", "doomed")
    cli("serve", "--stop")
    with hung(info["pid"]), hung(doomed["pid"]):
        there = cli.json("info", machine)
        assert (there["state"], there["pid"]) == ("running", info["pid"])
        assert "greet" in there["unreachable"]
        assert cli.text("list").count("running (unreachable)") == 2
        assert "unreachable:" in cli.text("info", machine)
        for words in (
            ("exec", machine, "--", "true"),
            ("exec", "-w", "/", machine, "--", "true"),
            ("console", machine),
            ("pause", machine),
            ("stop", machine),
            ("snapshot", "create", machine),
        ):
            cli.error(*words, says="cannot be reached", hint=f"bough stop {machine} --force")
        assert cli.json("info", "doomed")["unreachable"]
        cli("stop", "doomed", "--force")
        after = cli.json("info", "doomed")
        assert (after["state"], after["unreachable"]) == ("stopped", None)
        cli("serve", "--stop")
    wait_until(lambda: not cli.json("info", machine)["unreachable"], timeout_s=60)
    assert_goes_on(cli, machine, info["pid"])
