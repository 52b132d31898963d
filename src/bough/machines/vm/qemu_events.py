"""QEMU's events: stops and starts of vCPUs, a shutdown, errors of disks, the agent's port."""

from __future__ import annotations

from typing import Any, Protocol

from bough.machines.clock import ClockKeeper
from bough.machines.condition import Condition
from bough.machines.guest import Guest
from bough.machines.record import MachineRecord
from bough.machines.state import State
from bough.machines.vm.ending import Ending
from bough.qemu.qmp import Qmp


class Host(Protocol):
    """The parts of a machine that QemuEvents uses."""

    @property
    def record(self) -> MachineRecord: ...
    @property
    def state(self) -> State: ...
    @property
    def is_free(self) -> bool: ...
    def note(self, **fields: Any) -> bool: ...
    def tell(self, kind: str, detail: str = "") -> None: ...


class QemuEvents:
    """Passes QEMU's events to the parts of one machine."""

    def __init__(
        self, machine: Host, ending: Ending, condition: Condition, clock: ClockKeeper, guest: Guest
    ) -> None:
        self._machine = machine
        self._ending = ending
        self._condition = condition
        self._clock = clock
        self._guest = guest

    async def follow(self, qmp: Qmp) -> None:
        """Take all events, until the connection ends."""
        async for event in qmp.events():
            name, data = str(event.get("event")), event.get("data") or {}
            self._condition.heard(name, data)
            if name == "STOP":
                self._clock.vcpus_stopped(event)
                self._enter(State.RUNNING, State.PAUSED)
            elif name == "RESUME":
                self._clock.vcpus_run(event)
                self._enter(State.PAUSED, State.RUNNING)
            elif name == "SHUTDOWN":
                self._ending.shutdown_reason = str(data.get("reason", "unknown"))
            elif name == "BLOCK_IO_ERROR":
                why = "no space left on the host" if data.get("nospace") else str(data.get("reason", ""))
                self._machine.tell("disk-error", why)
            elif name == "RESET" and self._machine.record.agent_port == "serial":
                # A serial port does not report that the guest closed it.
                self._guest.port_changed(False)
                self._guest.port_changed(True)
            elif name == "VSERPORT_CHANGE" and data.get("id") == "agent":
                self._guest.port_changed(bool(data.get("open")))

    def _enter(self, before: State, after: State) -> None:
        """Follow QEMU from one state to the other, unless an operation controls the vCPUs."""
        if self._machine.state is before and self._machine.is_free:
            self._machine.note(state=after)
