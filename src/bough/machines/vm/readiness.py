"""Wait until a machine is ready, settled or stopped, and reach the agent of a ready machine."""

from __future__ import annotations

import asyncio
from typing import Protocol

from bough.errors import AgentTimeout, AgentUnavailable, DeadlineExceeded, WrongState
from bough.guest.channel import AgentChannel
from bough.guest.qga import QgaChannel
from bough.machines.boot_sight import BootSight
from bough.machines.boot_signs import recognize
from bough.machines.condition import Condition
from bough.machines.demand import DEMAND
from bough.machines.first_boot import first_boot_error
from bough.machines.guest import Guest
from bough.machines.guest_watch import SET_UP_QUIET_S
from bough.machines.mounts import trouble_error
from bough.machines.reach import Reach
from bough.machines.record import MachineRecord
from bough.machines.state import State
from bough.machines.vcpus import read_vcpus
from bough.machines.vm.ending import Ending
from bough.machines.vm.running import RunningVm
from bough.mounts.keeper import MountKeeper
from bough.progress import Progress, Report
from bough.progress_watch import ProgressWatch
from bough.tasks import end_tasks, wait_first

#: How long a command waits for the agent of an adopted machine.
_ADOPTED_S = 3.0
_SETTLED_POLL_S = 0.2


class Host(Protocol):
    """The parts of a machine that a Readiness uses."""

    @property
    def record(self) -> MachineRecord: ...
    @property
    def name(self) -> str: ...
    @property
    def state(self) -> State: ...
    @property
    def boot_sight(self) -> BootSight: ...
    @property
    def mounts(self) -> MountKeeper: ...
    def console_tail(self) -> str: ...
    def wrong_state(self, doing: str, *allowed: State) -> WrongState: ...


class Readiness:
    """The waits for one machine."""

    def __init__(
        self,
        machine: Host,
        vm: RunningVm,
        guest: Guest,
        ending: Ending,
        condition: Condition,
        reach: Reach,
    ) -> None:
        self._machine = machine
        self._vm = vm
        self._guest = guest
        self._ending = ending
        self._condition = condition
        self._reach = reach

    async def wait_ready(self, timeout_s: float | None, report: Report) -> None:
        """Wait until the agent has answered and the first boot's setup is done.

        Args:
            timeout_s: a user's bound; None: as long as the guest makes progress.

        Raises:
            MachineFailed: the machine ended meanwhile; carries the end of the console and of QEMU's stderr.
            AgentTimeout: no answer in time; the machine stays as it is.
            GuestRefused: a step of the first boot, the identity or a mount failed; the machine runs on.
            AgentUnavailable: the guest sleeps or has halted.
            BootFailed: the guest cannot boot without help; the machine is left running.
        """
        machine = self._machine
        if not machine.record.image_agent:
            await machine.boot_sight.wait(timeout_s, report)
            return
        report(Progress("waiting for the guest to answer"))
        watch = self._vm.watch(bound_s=timeout_s)
        sight = machine.boot_sight
        watching = asyncio.create_task(sight.watch_for_failure(report), name="watch a boot")
        try:
            is_ready = await self._is_ready(watch)
        finally:
            await end_tasks(watching)
        if not is_ready:
            self._reach.check()
            raise await self._not_ready(watch)
        if sight.has_failed.is_set() and sight.sight is not None and not self._guest.ready.is_set():
            raise sight.error(sight.sight)
        if self._condition.mute.is_set() and (error := self._condition.error()) is not None:
            raise error
        if not self._guest.ready.is_set():
            raise self._ending.error(f"before its agent answered, after {watch.waited_s:.1f} s")
        if (refused := first_boot_error(machine.record)) is not None:
            raise refused
        if machine.mounts.trouble:
            raise trouble_error(machine.name, machine.mounts.trouble)

    async def _is_ready(self, watch: ProgressWatch) -> bool:
        """Return whether the guest is ready, has ended, or can never be ready, before the watch runs out."""
        sight = self._machine.boot_sight
        events = (self._guest.ready, self._vm.ended, self._condition.mute, sight.has_failed)
        if await watch.until(*events):
            return True
        if not self._guest.answers or watch.is_bounded:
            return False
        return await self._vm.watch(SET_UP_QUIET_S).until(*events)

    async def _not_ready(self, watch: ProgressWatch) -> AgentTimeout:
        machine = self._machine
        self._vm.distrust_image("its guest did not answer")
        what = "is not done with its first boot" if self._guest.answers else "its agent did not answer"
        sight = recognize(machine.console_tail())
        seen = f": {sight.text}" if sight is not None and sight.kind != "login" else ""
        return AgentTimeout(
            f"machine '{machine.name}' runs, and {what} {watch.why}{seen}",
            hint=f"look at its console: bough console {machine.name}",
            machine=machine.name,
            timeout_s=round(watch.waited_s, 1),
            console=machine.console_tail(),
            vcpus=[vcpu.text for vcpu in await read_vcpus(self._vm.qmp)],
        )

    async def wait_settled(self, *, timeout_s: float = 120) -> None:
        """Wait until the guest has written the whole new identity to disk.

        Raises DeadlineExceeded, MachineFailed.
        """
        machine, watch = self._machine, self._vm.watch(timeout_s)
        while machine.record.identity != "known":
            if await wait_first(_SETTLED_POLL_S, self._vm.ended):
                raise self._ending.error("before its identity was on its disk")
            if not watch.look():
                raise DeadlineExceeded(
                    f"machine '{machine.name}' has not written its identity to its disk", machine=machine.name
                )

    async def wait_stopped(self, *, timeout_s: float) -> None:
        """Wait until the machine has stopped. Raises DeadlineExceeded."""
        machine = self._machine
        if not await self._vm.ended_within(timeout_s):
            raise DeadlineExceeded(
                f"machine '{machine.name}' is still {machine.state} after {timeout_s:.0f} s",
                machine=machine.name,
            )

    async def agent(self) -> AgentChannel | QgaChannel:
        """Return the channel to an agent that answers.

        Raises:
            WrongState: the machine does not run.
            AgentUnavailable: the machine has no agent, or the agent is silent.
            QmpLost: the machine runs but cannot be reached.
        """
        machine = self._machine
        if machine.state is not State.RUNNING and machine.state is not State.STOPPING:
            raise machine.wrong_state("talking to its agent", State.RUNNING)
        self._reach.check()
        if (error := self._condition.error()) is not None:
            raise error
        if not machine.record.image_agent and not self._guest.answers:
            raise AgentUnavailable(
                f"machine '{machine.name}' has no bough agent, and no qemu-guest-agent answers",
                hint=f"use its console: bough console {machine.name}",
                machine=machine.name,
            )
        if not self._guest.answers and self._vm.adopted:
            # A new service has not said hello yet. The guest may have been ready for long.
            await self._vm.watch(_ADOPTED_S).until(self._guest.ready, self._vm.ended)
        if self._guest.channel is None or not self._guest.answers:
            raise AgentUnavailable(
                f"the agent of machine '{machine.name}' does not answer (yet)",
                hint=f"bough wait {machine.name}",
                machine=machine.name,
                console=machine.console_tail(),
            )
        DEMAND.notice()
        self._vm.step_forward()
        return self._guest.channel
