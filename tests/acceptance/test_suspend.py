"""Suspend and resume: no process is left, and the whole state comes back."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import bough
from bough.errors import BoughError, MachineFailed, WrongState
from bough.paths import Home
from tests.acceptance.conftest import Cli
from tests.waiting import wait_until

COUNTER = (
    "setsid sh -c 'n=0; while :; do n=$((n+1)); echo $n 1<> /run/count; sleep 0.3; done' >/dev/null 2>&1 &"
)


def count(machine: bough.Machine) -> int:
    return int(machine.exec("cat", "/run/count").stdout or 0)


def kill_service(hv: bough.Hypervisor) -> bough.Hypervisor:
    os.kill(hv.version()["pid"], signal.SIGKILL)
    return bough.connect()


def test_it_goes_on_where_it_was(hv: bough.Hypervisor, vm: bough.Machine, cli: Cli) -> None:
    vm.shell(COUNTER)
    wait_until(lambda: count(vm) > 1, what="the process counts")
    before, identity = count(vm), vm.exec("cat", "/etc/machine-id", "/etc/hostname").stdout
    session = vm.spawn("sleep", "1000")
    vm.suspend()
    info = vm.info()
    assert (info.state, info.pid) == ("suspended", None)
    with pytest.raises(BoughError):
        session.wait(timeout=10)
    cli.error("exec", vm.name, "--", "true", says="is suspended", hint=f"bough resume {vm.name}")
    cli.error("stop", vm.name, says="a stop discards its memory", hint="--force")
    with pytest.raises(WrongState):
        vm.snapshot()
    fresh = kill_service(hv).machine(vm.name)
    assert fresh.state == "suspended"
    cli("start", vm.name)
    assert count(vm) >= before
    assert vm.exec("cat", "/etc/machine-id", "/etc/hostname").stdout == identity
    assert not vm.exec("pgrep", "-fx", "sleep 1000").ok, "a session from before goes on"
    assert abs(float(vm.exec("date", "+%s.%N").stdout) - time.time()) < 1
    seen = count(vm)
    wait_until(lambda: count(vm) > seen, what="the process counts on")


def test_memory_that_cannot_be_continued_is_not_lost(vm: bough.Machine, bough_home: Home, cli: Cli) -> None:
    vm.write_file("/run/word", "kept")
    cli("suspend", vm.name)
    devices = bough_home.machine(vm.id).suspended.devices
    whole = devices.read_bytes()
    replace(devices, whole[: len(whole) // 2])
    told = cli.error("resume", vm.name, says="cannot resume from its memory", hint="--cold")
    assert "qemu" in told.lower()
    assert vm.state == "suspended"
    replace(devices, whole)
    memory = bough_home.machine(vm.id).suspended.memory
    pages = memory.read_bytes()
    replace(memory, pages[:-4096])
    with pytest.raises(MachineFailed):
        vm.resume()
    replace(memory, pages)
    assert cli.json("doctor", "--store")["clean"]
    cli("resume", vm.name)
    assert vm.read_text("/run/word") == "kept"


def replace(path: Path, content: bytes) -> None:
    path.unlink()
    path.write_bytes(content)


def test_whatever_dies_in_the_middle(hv: bough.Hypervisor, vm: bough.Machine, bough_home: Home) -> None:
    """The machine runs, or is suspended completely."""
    vm.write_file("/run/word", "kept")
    made, kept = bough_home.incoming / f"{vm.id}.suspended", bough_home.machine(vm.id).suspended.root
    moments: list[tuple[str, Callable[[], bool]]] = [
        ("suspend", made.exists),
        ("suspend", kept.exists),
        ("resume", lambda: vm.state == "starting"),
        ("resume", lambda: not kept.exists()),
    ]
    for what, moment in moments:
        if vm.state == ("suspended" if what == "suspend" else "running"):
            (vm.resume if what == "suspend" else vm.suspend)()
        call = threading.Thread(target=quietly, args=(getattr(vm, what),))
        call.start()
        wait_for_moment(moment, call)
        hv = kill_service(hv)
        call.join(60)
        fresh = hv.machine(vm.name)
        assert fresh.state in ("running", "suspended"), what
        assert not made.exists()
        assert kept.exists() == (fresh.state == "suspended")
        if fresh.state == "suspended":
            fresh.resume()
        assert fresh.read_text("/run/word") == "kept"


def wait_for_moment(moment: Callable[[], bool], call: threading.Thread) -> None:
    with contextlib.suppress(BoughError):
        wait_until(lambda: moment() or not call.is_alive(), what="it is in the middle", every_s=0.001)


def quietly(call: Callable[[], None]) -> None:
    with contextlib.suppress(BoughError):
        call()


def test_its_memory_can_be_given_up(vm: bough.Machine, cli: Cli) -> None:
    vm.write_file("/run/word", "lost")
    vm.suspend()
    cli("start", vm.name, "--cold")
    assert not vm.exec("test", "-e", "/run/word").ok
    vm.suspend()
    vm.stop(force=True)
    assert vm.state == "stopped"
