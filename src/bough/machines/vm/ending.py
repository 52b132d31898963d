"""Why QEMU ended, and the next state: `stopped`, `failed` or `suspended`."""

from __future__ import annotations

from typing import Any, Protocol

from bough.errors import MachineFailed
from bough.machines.condition import Condition, Kind
from bough.machines.program import ContainerProgram
from bough.machines.record import Failure, MachineRecord, Restarts
from bough.machines.restart import Restarter
from bough.machines.state import State
from bough.paths import MachinePaths
from bough.qemu.pid import read_boot_id
from bough.qemu.waiter_files import ExitCause
from bough.storage import read_tail

#: QEMU's reasons for an expected shutdown (qapi/run-state.json, ShutdownCause).
_WANTED_SHUTDOWNS = frozenset({"guest-shutdown", "host-qmp-quit", "host-qmp-system-reset", "host-ui"})
_TAIL_BYTES = 4096


class Host(Protocol):
    """The parts of a machine that an Ending uses."""

    @property
    def record(self) -> MachineRecord: ...
    @property
    def paths(self) -> MachinePaths: ...
    @property
    def name(self) -> str: ...
    @property
    def state(self) -> State: ...
    @property
    def program(self) -> ContainerProgram: ...
    def note(self, **fields: Any) -> bool: ...
    def console_tail(self) -> str: ...


class Ending:
    """The end of a machine's QEMU: requests and reports before the end, and the record afterwards.

    Attributes:
        stop_asked: a user asked for the end.
        shutdown_reason: QEMU's reason of a shutdown, or "killed" by bough.
        given_up: why bough ended QEMU without a request.
    """

    def __init__(self, machine: Host, condition: Condition, restarter: Restarter) -> None:
        self._machine = machine
        self._condition = condition
        self._restarter = restarter
        self.stop_asked = False
        self.shutdown_reason: str | None = None
        self.given_up: str | None = None

    def new_process(self) -> None:
        """Forget the end of the last QEMU."""
        self.stop_asked = False
        self.shutdown_reason = self.given_up = None

    def settle(self, cause: ExitCause | None, *, seen: bool) -> None:
        """Record QEMU's end: `stopped` if the end was expected, otherwise `failed` with the cause.

        Args:
            seen: this service saw the end. If not, QEMU may have ended because the host went down.
        """
        machine = self._machine
        if machine.record.suspended is not None:
            if machine.state is not State.SUSPENDED:
                machine.note(state=State.SUSPENDED)
        elif not self._is_asked and (program := machine.record.program) is not None and program.has_failed:
            self.fail(f"its program {program.text}", cause)
        elif self._is_expected(cause):
            boot = read_boot_id() if seen or machine.state is State.STOPPING else None
            machine.note(state=State.STOPPED, failure=None, restarts=Restarts(), stopped_in_boot=boot)
        else:
            self.fail(self._explain(cause), cause)
        machine.program.power_ended()

    @property
    def _is_broken(self) -> bool:
        return self.given_up is not None or self._condition.is_now(Kind.PANICKED)

    @property
    def _is_asked(self) -> bool:
        return self.stop_asked or self._machine.state is State.STOPPING

    def _is_expected(self, cause: ExitCause | None) -> bool:
        if self._is_asked:
            return True
        is_clean = cause is not None and cause.exit_status == 0
        return not self._is_broken and (self.shutdown_reason in _WANTED_SHUTDOWNS or is_clean)

    def _explain(self, cause: ExitCause | None) -> str:
        if self.given_up is not None:
            return self.given_up
        if self._is_broken:
            return "the guest's kernel panicked"
        if cause is not None:
            return cause.text
        return "its QEMU ended unobserved (a power loss, or a restart of the host)"

    def fail(self, text: str, cause: ExitCause | None = None) -> None:
        """Record a failure, and plan a restart by the machine's policy."""
        machine = self._machine
        failure = Failure(
            cause=text,
            exit_status=cause.exit_status if cause else None,
            signal=cause.signal if cause else None,
            qemu_stderr=read_tail(machine.paths.qemu_log, _TAIL_BYTES),
            console=machine.console_tail(),
        )
        machine.note(state=State.FAILED, failure=failure)
        self._restarter.after_failure()

    def error(self, when: str) -> MachineFailed:
        """Return the error for a caller that needs the ended machine."""
        machine = self._machine
        if (of_program := machine.program.error()) is not None:
            return of_program
        failure, console = machine.record.failure, machine.console_tail()
        cause = failure.cause if failure else "the guest powered off"
        return MachineFailed(
            f"machine '{machine.name}' stopped {when} ({cause})",
            hint="the end of its console is above" if console else None,
            machine=machine.name,
            exit_status=failure.exit_status if failure else None,
            signal=failure.signal if failure else None,
            qemu_stderr=failure.qemu_stderr if failure else "",
            console=console,
        )
