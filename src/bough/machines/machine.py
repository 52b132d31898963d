"""A machine in the service: the facade of record, QEMU, guest and operations.

An *operation* (start, delete, ...) is exclusive: a second operation fails at once with `Conflict`, and the
error names the running operation. A *claim* combines several operations into one. All other calls wait for
events. The record is written to disk before an operation is acknowledged. Only changes by QEMU itself take
effect even if the disk is full (`note`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Any, TypeVar

from bough.errors import MachineFailed, WrongState
from bough.guest.channel import AgentChannel
from bough.guest.qga import QgaChannel
from bough.guest.session import Tunnel
from bough.machines.boot import Boot
from bough.machines.boot_sight import BootSight
from bough.machines.clock import ClockKeeper
from bough.machines.condition import Condition
from bough.machines.console import Console, read_console
from bough.machines.disks.merging import Chains
from bough.machines.events import Events
from bough.machines.faults.present import PresentFaults
from bough.machines.forwards import Forwards
from bough.machines.guest import Guest
from bough.machines.guest_watch import BOOT_QUIET_S
from bough.machines.operations import Operations, wrong_state
from bough.machines.program import ContainerProgram
from bough.machines.reach import Reach
from bough.machines.record import MachineRecord
from bough.machines.record_file import RecordFile
from bough.machines.recovery import Recovery
from bough.machines.restart import Restarter
from bough.machines.saved_state import SavedState
from bough.machines.standby import Standby
from bough.machines.state import State
from bough.machines.vm.ending import Ending
from bough.machines.vm.pause import Pause
from bough.machines.vm.qemu_events import QemuEvents
from bough.machines.vm.readiness import Readiness
from bough.machines.vm.running import RunningVm
from bough.machines.vm.start import AgentDiskChoice, Launch, Planner, Start, keep_agent_disk
from bough.machines.vm.stop import Stop
from bough.mounts.keeper import MountKeeper
from bough.paths import MachinePaths
from bough.progress import Report, ignore_progress
from bough.progress_watch import ProgressWatch
from bough.qemu.emulation import gives_way
from bough.qemu.process_start import start_process
from bough.qemu.qmp import Qmp
from bough.tasks import Tasks

_TAIL_BYTES = 4096

T = TypeVar("T")


class Machine:
    """One machine. `start`, `go_on` and `stop` run to the end even if the caller is cancelled.

    Args:
        merged: called when some backing files are not needed any more.
    """

    def __init__(
        self,
        record: MachineRecord,
        paths: MachinePaths,
        events: Events,
        planner: Planner,
        merged: Callable[[], None],
        launch: Launch = start_process,
        choose_agent_disk: AgentDiskChoice = keep_agent_disk,
    ) -> None:
        self.paths = paths
        self._file = RecordFile(record, paths, events)
        self._operations = Operations(self)
        self._tasks = Tasks()
        self.mounts = MountKeeper(record.id, (paths.root.parent.parent, paths.runtime.parent), self.tell)
        self.forwards = forwards = Forwards(self, self._dial)
        self.chains = Chains(self, merged)
        self.standby = Standby(self)
        self.boot = Boot(self)
        self.boot_sight = BootSight(self)
        self.clock = ClockKeeper(self)
        self.faults = PresentFaults(self)
        self.program = ContainerProgram(self)
        self.condition = condition = Condition(self)
        self.reach = reach = Reach(self, self._join)
        self.guest = guest = Guest(self)
        self.restarter = restarter = Restarter(self)
        self.ending = ending = Ending(self, condition, restarter)
        qemu_events = QemuEvents(self, ending, condition, self.clock, guest)
        self.vm = vm = RunningVm(self, guest, forwards, condition, self.clock, qemu_events, ending, reach)
        self._pause = Pause(self, guest, condition, self.clock)
        self._start = Start(self, vm, guest, ending, forwards, restarter, planner, launch, choose_agent_disk)
        self.stopping = Stop(self, vm, guest, ending, condition, reach, restarter)
        self.recovery = Recovery(self, vm, ending, forwards, reach, restarter)
        self.readiness = Readiness(self, vm, guest, ending, condition, reach)

    # -- state --------------------------------------------------------------------------------

    @property
    def record(self) -> MachineRecord:
        return self._file.record

    @property
    def id(self) -> str:
        return self.record.id

    @property
    def name(self) -> str:
        return self.record.name

    @property
    def state(self) -> State:
        return self.record.state

    @property
    def pid(self) -> int | None:
        """Return the id of the QEMU process, or None."""
        return self.vm.pid

    @property
    def agent_state(self) -> str:
        answers = self.guest.answers and self.condition.found is None
        if not self.record.image_agent:
            return "qemu-guest-agent" if answers else "none"
        return "answering" if answers else "silent"

    @property
    def boot_id(self) -> str | None:
        return self.guest.boot_id

    @property
    def booted(self) -> bool:
        """Return whether the guest has started all services, as far as known."""
        return self.guest.answers and self.boot.has_ended

    def console_tail(self) -> str:
        return read_console(self.paths.console_log, _TAIL_BYTES)

    # -- operations ---------------------------------------------------------------------------

    @property
    def is_free(self) -> bool:
        """Return whether no operation runs."""
        return self._operations.is_free

    def operation(self, doing: str, *allowed: State) -> AbstractAsyncContextManager[None]:
        """Run the block as an exclusive operation; see Operations."""
        return self._operations.run(doing, *allowed)

    def claim(self, doing: str) -> AbstractContextManager[None]:
        """Make all operations in the block one operation; see Operations."""
        return self._operations.claim(doing)

    def bury(self) -> None:
        """Mark the machine as deleted: later calls on this object fail."""
        self._operations.end()

    def wrong_state(self, doing: str, *allowed: State) -> WrongState:
        return wrong_state(self.name, self.state, doing, allowed)

    async def start(
        self,
        report: Report = ignore_progress,
        *,
        by_policy: bool = False,
        saved: SavedState | None = None,
        hold: bool = False,
    ) -> None:
        """Start the machine. Return when its vCPUs run; `wait_ready` waits for the guest. See Start.run."""
        work = self._start.run(report, by_policy=by_policy, saved=saved, hold=hold)
        await asyncio.shield(self.own(work, "start"))

    async def go_on(self, saved: SavedState, *, name: str, ephemeral: bool) -> None:
        """Complete a held start for a user."""
        await asyncio.shield(self.own(self._start.go_on(saved, name=name, ephemeral=ephemeral), "start"))

    async def stop(
        self,
        *,
        deadline_s: float | None = None,
        force: bool = False,
        flush: bool = True,
        report: Report = ignore_progress,
    ) -> str:
        """Stop the machine; see Stop.run. Return "guest" if the guest powered itself off, else "power"."""
        stopping = self.stopping.run(deadline_s=deadline_s, force=force, flush=flush, report=report)
        return await asyncio.shield(self.own(stopping, "stop"))

    async def give_up(self, why: str) -> None:
        """End a QEMU with a useless guest; see Stop.give_up."""
        await self.stopping.give_up(why)

    async def pause(self) -> None:
        await self._pause.begin()

    async def resume(self) -> None:
        await self._pause.end()

    def rename(self, name: str) -> None:
        self._operations.check()
        old = self.name
        self.change(name=name)
        self.tell_name()
        self._file.tell("renamed", f"from {old}")

    def renamed(self) -> None:
        """Follow a new name: the guest has the name, but not yet on the disk."""
        self.tell_name()
        self.guest.settle_soon()

    def tell_name(self) -> None:
        """Pass the name on to the parts that name the machine in errors."""
        self.forwards.rename(self.name)
        if self.guest.channel is not None:
            self.guest.channel.machine = self.name

    def stand_back(self, back: bool = True) -> None:
        """Give this machine low or normal priority for processor time; see cpu_priority.py."""
        if not back or gives_way(self.record.accelerator):
            self.vm.stand_back(back)

    async def let_go(self) -> None:
        """Release the machine at the end of the service: close all connections and leave QEMU running."""
        await self._tasks.end()
        await self.vm.disconnect()

    # -- waiting ------------------------------------------------------------------------------

    def watch(
        self, quiet_s: float = BOOT_QUIET_S, *, bound_s: float | None = None, most_s: float | None = None
    ) -> ProgressWatch:
        """Return a watch that begins now, and limits a wait for the guest; see guest_watch.py."""
        return self.vm.watch(quiet_s, bound_s=bound_s, most_s=most_s)

    async def wait_ready(self, *, timeout_s: float | None = None, report: Report = ignore_progress) -> None:
        """Wait until the agent has answered and the first boot is set up; see Readiness.wait_ready."""
        await self.readiness.wait_ready(timeout_s, report)

    def ended_error(self, when: str) -> MachineFailed:
        """Return the error for a caller that needs the ended machine."""
        return self.ending.error(when)

    # -- the guest ----------------------------------------------------------------------------

    async def agent(self) -> AgentChannel | QgaChannel:
        """Return the channel to an agent that answers; see Readiness.agent."""
        return await self.readiness.agent()

    def channel(self) -> AgentChannel | None:
        """Return the channel to bough's agent if the agent answers, or None."""
        return self.guest.agent

    def answering(self) -> AgentChannel | QgaChannel | None:
        """Return the channel to an answering agent, bough's or qemu-guest-agent, or None."""
        return self.guest.channel if self.guest.answers else None

    async def _join(self) -> None:
        await self.recovery.join()

    async def _dial(self, guest_port: int) -> Tunnel:
        channel: Any = await self.agent()
        tunnel: Tunnel = await channel.dial(guest_port)
        return tunnel

    def console(self) -> Console:
        """Return the console. Raises WrongState: the machine does not run. QmpLost: no connection."""
        return self.vm.require_console()

    def screen(self) -> Qmp:
        return self.vm.require_screen()

    def qmp(self) -> Qmp:
        """Return the connection to QMP. Raises as `console`."""
        return self.vm.require_qmp()

    # -- bookkeeping --------------------------------------------------------------------------

    def change(self, *, event: bool = False, **fields: Any) -> None:
        """Change the record; for callers that hold an operation. Raises NoSpace, OSError."""
        self._file.change(event=event, **fields)

    def note(self, **fields: Any) -> bool:
        """Record what QEMU did, for callers that hold an operation; see RecordFile.note."""
        return self._file.note(**fields)

    def tell(self, kind: str, detail: str = "") -> None:
        """Emit an event about the machine; standby machines emit no events."""
        self._file.tell(kind, detail)

    def own(self, work: Coroutine[Any, Any, T], what: str) -> asyncio.Task[T]:
        """Begin a task that ends when the service releases the machine, not when a caller disconnects."""
        return self._tasks.begin(work, f"{self.name}: {what}")
