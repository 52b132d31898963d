"""Adopt a machine that an earlier service left: connect to QEMU, and complete interrupted work."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Protocol, TypeVar

from bough.errors import BoughError, QmpLost
from bough.machines.disks.merging import Chains
from bough.machines.disks.nodes import writes
from bough.machines.forwards import Forwards
from bough.machines.live_copy import end_live_copy
from bough.machines.reach import Reach
from bough.machines.record import MachineRecord
from bough.machines.restart import Restarter
from bough.machines.state import LIVE, State
from bough.machines.vm.ending import Ending
from bough.machines.vm.running import RunningVm
from bough.paths import MachinePaths
from bough.qemu.process import QemuProcess, find_process
from bough.qemu.qmp import Qmp
from bough.qemu.waiter_files import read_exit

#: How long a QEMU may take to end after SIGKILL.
_KILLED_S = 5.0
#: States of QEMU in which the vCPUs are paused. "prelaunch": the guest reset itself at the moment of the
#: pause.
_PAUSED = ("paused", "postmigrate", "prelaunch")

T = TypeVar("T")


class Host(Protocol):
    """The parts of a machine that a Recovery uses."""

    @property
    def record(self) -> MachineRecord: ...
    @property
    def paths(self) -> MachinePaths: ...
    @property
    def state(self) -> State: ...
    @property
    def chains(self) -> Chains: ...
    def change(self, *, event: bool = ..., **fields: Any) -> None: ...
    def note(self, **fields: Any) -> bool: ...
    def tell(self, kind: str, detail: str = "") -> None: ...
    def own(self, work: Coroutine[Any, Any, T], what: str) -> asyncio.Task[T]: ...
    async def stop(self) -> str: ...


class Recovery:
    """The adoption of one machine at the start of the service."""

    def __init__(
        self,
        machine: Host,
        vm: RunningVm,
        ending: Ending,
        forwards: Forwards,
        reach: Reach,
        restarter: Restarter,
    ) -> None:
        self._machine = machine
        self._vm = vm
        self._ending = ending
        self._forwards = forwards
        self._reach = reach
        self._restarter = restarter

    async def adopt(self) -> None:
        """Find the machine's QEMU and connect, or record the end. A QEMU that does not answer runs on, and is
        tried again.
        """
        try:
            process = await find_process(self._machine.paths)
        except (BoughError, OSError) as error:
            self._ending.fail(f"its QEMU cannot be found again: {error}")
            return
        if process is not None and self._machine.record.suspended is not None:
            # The service died while the machine was suspended or resumed. The memory on disk is complete.
            process.kill()
            await process.wait()
            process = None
        if process is None:
            self._note_end()
        else:
            await self._adopt_process(process)

    def _note_end(self) -> None:
        """Record the state of a machine without a QEMU."""
        machine = self._machine
        if machine.record.disks_before is not None:
            machine.change(disks_before=None)
        if machine.record.suspended is not None:
            machine.note(state=State.SUSPENDED)
        elif machine.state in LIVE:
            self._ending.settle(read_exit(machine.paths), seen=False)
        else:
            self._restarter.adopt()

    async def _adopt_process(self, process: QemuProcess) -> None:
        process.stand_back(False)  # the service may have died in the middle of many forks
        self._vm.hold(process)
        try:
            await self.join()
        except (BoughError, OSError) as error:
            if not self._vm.ended.is_set():
                self._reach.lose(error)

    async def join(self) -> None:
        """Take control of a QEMU that an earlier service started.

        Raises BoughError, OSError: QEMU does not answer. QEMU runs on, and the caller may try again.
        """
        machine, process = self._machine, self._vm.process
        if process is None:
            raise QmpLost("its QEMU has ended")
        process.name_sockets()
        try:
            runs = await self._connect(process)
        except (BoughError, OSError):
            await self._vm.disconnect()
            raise
        if runs is None:
            return
        stops = machine.state is State.STOPPING
        self._ending.stop_asked = stops
        machine.note(state=State.RUNNING if runs else State.PAUSED)
        machine.chains.adopt()
        if stops:  # the service died during this stop: complete the stop
            machine.own(machine.stop(), "stop")
        await self._forwards.bind_again()

    async def _connect(self, process: QemuProcess) -> bool | None:
        """Connect to QEMU. Return whether the vCPUs run, or None after the end of a useless QEMU.

        Raises BoughError, OSError.
        """
        machine = self._machine
        self._forwards.begin()
        await self._vm.connect(machine.record.accelerator, adopted=True)
        self._vm.adopted = True
        qmp = self._vm.qmp
        assert qmp is not None
        await end_live_copy(qmp)
        status = (await qmp.query("query-status")).get("status")
        await self._finish_snapshot(qmp)
        # QEMU waits for a saved state, or continued from a process image. No caller is left to complete the
        # start.
        begins = machine.record.standby or machine.state is State.STARTING
        if status == "inmigrate" or (begins and status in ("prelaunch", "restore-vm")):
            await self._end_useless(process, "the service ended before its saved state was loaded")
            return None
        if status in _PAUSED and machine.record.identity == "known":
            machine.change(identity="clock")  # the pause had an unknown length
        if status in _PAUSED and machine.state is not State.PAUSED:
            # The service died during a pause for a snapshot or a suspend.
            await qmp.execute("cont")
            return True
        return status not in _PAUSED

    async def _end_useless(self, process: QemuProcess, why: str) -> None:
        """End a QEMU whose guest has not run, and cannot run."""
        self._ending.given_up = f"it was ended: {why}"
        process.kill()
        await self._vm.ended_within(_KILLED_S)
        self._machine.tell("lost", why)

    async def _finish_snapshot(self, qmp: Qmp) -> None:
        """Complete the record of a snapshot after a death of the service: ask QEMU for the disks in use."""
        record = self._machine.record
        if record.disks_before is not None:
            disks = record.disks if await writes(qmp, record.disks) else record.disks_before
            self._machine.change(disks=disks, disks_before=None)
