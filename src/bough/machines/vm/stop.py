"""Stop a machine: ask the guest to power off, then power off the machine."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from bough.errors import BoughError, Conflict, WrongState
from bough.machines.condition import Condition, Kind
from bough.machines.guest import Guest
from bough.machines.guest_watch import STOP_MOST_S, STOP_QUIET_S
from bough.machines.reach import Reach
from bough.machines.record import MachineRecord, Restarts, Suspended
from bough.machines.restart import Restarter
from bough.machines.state import LIVE, State
from bough.machines.vm.ending import Ending
from bough.machines.vm.running import RunningVm
from bough.paths import MachinePaths
from bough.progress import Progress, Report
from bough.qemu.pid import read_boot_id
from bough.tasks import wait_first

#: How long a stop waits for the agent of a woken guest, before the stop presses the power button.
_WOKEN_S = 10.0
_POWER_OFF_S = 10.0


class Host(Protocol):
    """The parts of a machine that a Stop uses."""

    @property
    def record(self) -> MachineRecord: ...
    @property
    def paths(self) -> MachinePaths: ...
    @property
    def name(self) -> str: ...
    @property
    def state(self) -> State: ...
    def operation(self, doing: str, *allowed: State) -> AbstractAsyncContextManager[None]: ...
    def wrong_state(self, doing: str, *allowed: State) -> WrongState: ...
    def change(self, *, event: bool = ..., **fields: Any) -> None: ...
    def note(self, **fields: Any) -> bool: ...


class Stop:
    """The stops of one machine. A second stop joins the first."""

    def __init__(
        self,
        machine: Host,
        vm: RunningVm,
        guest: Guest,
        ending: Ending,
        condition: Condition,
        reach: Reach,
        restarter: Restarter,
    ) -> None:
        self._machine = machine
        self._vm = vm
        self._guest = guest
        self._ending = ending
        self._condition = condition
        self._reach = reach
        self._restarter = restarter

    async def run(self, *, deadline_s: float | None, force: bool, flush: bool, report: Report) -> str:
        """Ask the guest to power off; power off the machine after `deadline_s`. The caller must not be
        cancelled.

        Args:
            deadline_s: in seconds; None: until the guest makes no progress any more, 180 s at most.
            force: do not ask the guest; discard the memory of a suspended machine.
            flush: have QEMU write its cached data to the disks; False for disks that will be deleted.

        Returns "guest" if the guest powered itself off, otherwise "power".
        """
        machine = self._machine
        if machine.state is State.SUSPENDED:
            await self._discard_memory(force)
            return "power"
        if self._restarter.is_pending and machine.state is State.FAILED:
            await self._cancel_restart()
            return "power"
        self._check(force)
        if machine.state is not State.STOPPING or force:
            await self._begin(deadline_s, force, report)
        if not force:
            watch = self._vm.watch(STOP_QUIET_S, bound_s=deadline_s, most_s=STOP_MOST_S)
            await watch.until(self._vm.ended, self._condition.dead)
        if self._vm.ended.is_set():
            return "guest" if self._ending.shutdown_reason != "killed" else "power"
        await self._power_off(flush, report)
        return "power"

    def _check(self, force: bool) -> None:
        """Raise WrongState, Conflict, QmpLost if the machine cannot be stopped now."""
        machine = self._machine
        if machine.state not in LIVE:
            raise machine.wrong_state("stopping", State.RUNNING, State.PAUSED)
        if not force:
            self._reach.check()
        if machine.state is State.STARTING and self._reach.trouble is None:
            raise Conflict(f"machine '{machine.name}' is starting just now", machine=machine.name)

    async def _begin(self, deadline_s: float | None, force: bool, report: Report) -> None:
        was_paused = self._machine.state is State.PAUSED
        self._ending.stop_asked = True
        self._machine.note(state=State.STOPPING)
        if not force and not self._condition.dead.is_set():
            most_s = STOP_MOST_S if deadline_s is None else deadline_s
            report(Progress("asking the guest to power off", detail=f"at most {most_s:.0f} s"))
            await self._ask_guest(was_paused)

    async def _ask_guest(self, was_paused: bool) -> None:
        with contextlib.suppress(BoughError, OSError):
            if was_paused and self._vm.qmp is not None:
                await self._vm.qmp.execute("cont")
            if self._condition.is_now(Kind.ASLEEP):
                await self._condition.wake()
                await wait_first(_WOKEN_S, self._guest.ready, self._vm.ended)
        if self._guest.channel is not None and self._guest.answers:
            try:
                await self._guest.channel.call("power_off", {}, timeout_s=_POWER_OFF_S, exact=True)
                return
            except BoughError:
                pass  # the agent cannot: press the power button
        with contextlib.suppress(BoughError, OSError):
            if self._vm.qmp is not None:
                await self._vm.qmp.execute("system_powerdown")

    async def _power_off(self, flush: bool, report: Report) -> None:
        if self._vm.process is None:
            return
        report(Progress("powering off"))
        self._ending.shutdown_reason = "killed"
        if flush:
            await self._vm.quit()
        else:
            self._vm.process.kill()
            await self._vm.ended.wait()

    async def _cancel_restart(self) -> None:
        async with self._machine.operation("being stopped", State.FAILED):
            self._restarter.cancel()
            self._machine.note(state=State.STOPPED, restarts=Restarts(), stopped_in_boot=read_boot_id())

    async def _discard_memory(self, force: bool) -> None:
        machine = self._machine
        if not force:
            raise WrongState(
                f"machine '{machine.name}' is suspended: a stop discards its memory",
                hint=f"bough resume {machine.name}; to discard its memory: bough stop {machine.name} --force",
                machine=machine.name,
                state=str(machine.state),
            )
        async with machine.operation("being stopped", State.SUSPENDED):
            boot = read_boot_id()
            machine.change(event=True, state=State.STOPPED, suspended=None, stopped_in_boot=boot)
            await asyncio.to_thread(shutil.rmtree, machine.paths.suspended.root, True)

    async def leave_suspended(self, suspended: Suspended) -> None:
        """Record the suspend, and end QEMU. The memory is on disk, the vCPUs are paused, and the caller holds
        an operation.
        """
        machine = self._machine
        if machine.state not in (State.RUNNING, State.PAUSED):
            raise self._ending.error("while it was being suspended")
        machine.change(event=True, state=State.SUSPENDED, suspended=suspended)
        await self._vm.quit()

    async def give_up(self, why: str) -> None:
        """End a QEMU with a useless guest. The machine becomes `failed`, with the cause.

        Raises:
            Conflict, WrongState: another operation runs, or the machine does not run.
        """
        async with self._machine.operation("being ended", State.RUNNING):
            self._ending.given_up = why
            await self._vm.quit()
