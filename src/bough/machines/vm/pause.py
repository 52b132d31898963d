"""Pause and resume the vCPUs of a machine."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from bough.machines.clock import ClockKeeper
from bough.machines.condition import Condition
from bough.machines.guest import Guest
from bough.machines.record import MachineRecord
from bough.machines.state import State
from bough.qemu.qmp import Qmp


class Host(Protocol):
    """The parts of a machine that a Pause uses."""

    @property
    def record(self) -> MachineRecord: ...
    def qmp(self) -> Qmp: ...
    def note(self, **fields: Any) -> bool: ...
    def operation(self, doing: str, *allowed: State) -> AbstractAsyncContextManager[None]: ...


class Pause:
    """The pauses of a machine that a user asked for."""

    def __init__(self, machine: Host, guest: Guest, condition: Condition, clock: ClockKeeper) -> None:
        self._machine = machine
        self._guest = guest
        self._condition = condition
        self._clock = clock

    async def begin(self) -> None:
        """Pause the vCPUs. Raises WrongState: the machine does not run, or the guest sleeps."""
        machine = self._machine
        async with machine.operation("pausing", State.RUNNING):
            self._condition.check_awake("pausing")
            await machine.qmp().execute("stop")
            machine.note(state=State.PAUSED)

    async def end(self) -> None:
        """Let the vCPUs run, with the right time. Raises WrongState: the machine is not paused."""
        machine = self._machine
        async with machine.operation("resuming", State.PAUSED):
            qmp = machine.qmp()
            await self._clock.go_on(lambda: qmp.execute("cont"))
            machine.note(state=State.RUNNING)
        if machine.record.identity == "new":
            self._guest.settle_soon()
