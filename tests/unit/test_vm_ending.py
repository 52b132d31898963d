"""The state of a machine after the end of its QEMU, for each cause of the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from bough.machines.condition import Condition, Kind
from bough.machines.program import ContainerProgram
from bough.machines.program import Host as ProgramHost
from bough.machines.record import MachineRecord, ProgramRun
from bough.machines.restart import Restarter
from bough.machines.state import State
from bough.machines.vm.ending import Ending
from bough.paths import Home, MachinePaths
from bough.qemu.waiter_files import ExitCause

CLEAN = ExitCause(0, None, "", "QEMU exited with 0")
KILLED = ExitCause(None, "SIGKILL", "", "QEMU was killed by SIGKILL")


class Record:
    """As much of a record as `settle` uses."""

    suspended: object | None = None
    failure = None
    program: ProgramRun | None = None


class Host:
    """A machine with a fake record, which keeps what is noted."""

    name = "web"

    def __init__(self, home: Home, state: State) -> None:
        self.paths: MachinePaths = home.machine("aaaaaaaaaaaa")
        self.state = state
        self.noted: dict[str, Any] = {}
        self._record = Record()

    @property
    def record(self) -> MachineRecord:
        return cast(MachineRecord, self._record)

    @property
    def program(self) -> ContainerProgram:
        return ContainerProgram(cast(ProgramHost, self))

    def ran(self, run: ProgramRun) -> None:
        self._record.program = run

    def suspend(self) -> None:
        self._record.suspended = object()

    def note(self, **fields: Any) -> bool:
        self.noted |= fields
        return True

    def console_tail(self) -> str:
        return "login:"


class Healthy:
    """The condition of a guest, panicked or not."""

    def __init__(self, panicked: bool = False) -> None:
        self._panicked = panicked

    def is_now(self, *kinds: Kind) -> bool:
        return self._panicked and Kind.PANICKED in kinds


class Policy:
    """A restart policy that counts failures."""

    failures = 0

    def after_failure(self) -> None:
        self.failures += 1


def make(tmp_path: Path, state: State = State.RUNNING, *, panicked: bool = False) -> tuple[Host, Ending]:
    host = Host(Home.at(tmp_path), state)
    return host, Ending(host, cast(Condition, Healthy(panicked)), cast(Restarter, Policy()))


@pytest.mark.parametrize("reason", ["guest-shutdown", "host-qmp-quit", "host-ui"])
def test_a_shutdown_that_the_guest_or_bough_wanted(tmp_path: Path, reason: str) -> None:
    host, ending = make(tmp_path)
    ending.shutdown_reason = reason
    ending.settle(KILLED, seen=True)
    assert host.noted["state"] is State.STOPPED
    assert host.noted["failure"] is None
    assert host.noted["stopped_in_boot"] is not None


def test_an_asked_stop_counts_whatever_became_of_qemu(tmp_path: Path) -> None:
    host, ending = make(tmp_path)
    ending.stop_asked = True
    ending.settle(KILLED, seen=True)
    states = [host.noted["state"]]
    ending.new_process()
    ending.settle(KILLED, seen=True)
    assert [*states, host.noted["state"]] == [State.STOPPED, State.FAILED]


def test_a_clean_exit_that_nobody_saw_permits_an_autostart(tmp_path: Path) -> None:
    host, ending = make(tmp_path)
    ending.settle(CLEAN, seen=False)
    assert (host.noted["state"], host.noted["stopped_in_boot"]) == (State.STOPPED, None)
    host, ending = make(tmp_path, State.STOPPING)
    ending.settle(None, seen=False)
    assert host.noted["state"] is State.STOPPED
    assert host.noted["stopped_in_boot"] is not None


@pytest.mark.parametrize(
    ("panicked", "given_up", "cause", "text"),
    [
        (False, None, KILLED, "QEMU was killed by SIGKILL"),
        (False, None, None, "its QEMU ended unobserved (a power loss, or a restart of the host)"),
        (True, None, CLEAN, "the guest's kernel panicked"),
        (True, "the guest's kernel panicked: no init", CLEAN, "the guest's kernel panicked: no init"),
    ],
    ids=["killed", "unobserved", "panic", "given up"],
)
def test_a_failure_keeps_its_cause(
    tmp_path: Path, panicked: bool, given_up: str | None, cause: ExitCause | None, text: str
) -> None:
    host, ending = make(tmp_path, panicked=panicked)
    ending.given_up = given_up
    ending.settle(cause, seen=True)
    assert host.noted["state"] is State.FAILED
    assert host.noted["failure"].cause == text
    assert host.noted["failure"].console == "login:"
    assert cast(Policy, ending._restarter).failures == 1


def test_a_suspended_machine_stays_suspended(tmp_path: Path) -> None:
    host, ending = make(tmp_path, State.STARTING)
    host.suspend()
    ending.settle(KILLED, seen=True)
    assert host.noted == {"state": State.SUSPENDED}
    host, ending = make(tmp_path, State.SUSPENDED)
    host.suspend()
    ending.settle(KILLED, seen=True)
    assert host.noted == {}


@pytest.mark.parametrize(
    ("run", "state"),
    [
        (ProgramRun(state="ended", code=0), State.STOPPED),
        (ProgramRun(state="ended", code=3), State.FAILED),
        (ProgramRun(state="ended", signal="SEGV"), State.FAILED),
        (ProgramRun(state="ended"), State.STOPPED),
        (ProgramRun(state="failed", code=127, error="/x: No such file or directory"), State.FAILED),
    ],
)
def test_the_end_of_the_program_decides(tmp_path: Path, run: ProgramRun, state: State) -> None:
    host, ending = make(tmp_path)
    host.ran(run)
    ending.shutdown_reason = "guest-shutdown"
    ending.settle(CLEAN, seen=True)
    assert host.noted["state"] is state
    if state is State.FAILED:
        assert host.noted["failure"].cause == f"its program {run.text}"
        assert str(ending.error("meanwhile")).startswith("machine 'web' does not run: its program ")
    host, ending = make(tmp_path)
    host.ran(run)
    ending.stop_asked = True
    ending.settle(CLEAN, seen=True)
    assert host.noted["state"] is State.STOPPED


def test_the_unseen_end_of_a_program(tmp_path: Path) -> None:
    host, ending = make(tmp_path)
    host.ran(ProgramRun(state="runs", argv=["x"], pid=7))
    ending.settle(KILLED, seen=False)
    assert host.noted["state"] is State.FAILED
    assert host.noted["program"].state == "ended"
    assert host.noted["program"].text == "ended with exit status unknown"
