"""A machine in the service: QEMU, sockets and tasks.

An *operation* (start, delete, ...) is exclusive: a second operation fails at once with `Conflict`, and the
error names the running operation. A *claim* combines several operations into one. All other calls wait for
events, set by two tasks: a watcher of the process and a watcher of QMP. The record is written to disk before
an operation is acknowledged. Only changes by QEMU itself take effect even if the disk is full (`_note`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import replace
from typing import Any, TypeVar

from bough.errors import (
    AgentTimeout,
    AgentUnavailable,
    BoughError,
    Conflict,
    DeadlineExceeded,
    MachineFailed,
    NoSpace,
    QmpLost,
    WrongState,
)
from bough.guest.channel import AgentChannel
from bough.guest.qga import QgaChannel
from bough.machines.boot import Boot
from bough.machines.boot_sight import BootSight
from bough.machines.boot_signs import recognize
from bough.machines.clock import ClockKeeper
from bough.machines.condition import Condition, Kind
from bough.machines.console import Console, read_console
from bough.machines.cpu_priority import CpuPriority
from bough.machines.demand import DEMAND
from bough.machines.disks.merging import Chains
from bough.machines.disks.nodes import writes
from bough.machines.events import Events
from bough.machines.first_boot import first_boot_error, tried_again
from bough.machines.guest import Guest
from bough.machines.guest_watch import (
    BOOT_QUIET_S,
    SET_UP_QUIET_S,
    STOP_MOST_S,
    STOP_QUIET_S,
    guest_signs,
    watch_guest,
)
from bough.machines.live_copy import end_live_copy
from bough.machines.mounts import trouble_error
from bough.machines.ports import PortServer
from bough.machines.reach import ADOPT_TIMEOUT_S, Reach
from bough.machines.record import (
    Failure,
    MachineRecord,
    PortForward,
    Restarts,
    Suspended,
    now,
)
from bough.machines.restart import Restarter
from bough.machines.saved_state import ProcessImage, SavedState, load_state
from bough.machines.screen import VncDoor
from bough.machines.standby import Standby
from bough.machines.state import LIVE, State, check_transition
from bough.machines.turns import Turns
from bough.machines.vcpus import read_vcpus
from bough.machines.workarounds import same_addresses
from bough.machines.workarounds.stuck_vcpus import StuckVcpus
from bough.mounts.keeper import MountKeeper
from bough.mounts.source import check_sources
from bough.paths import MachinePaths
from bough.progress import Progress, Report, ignore_progress, notice
from bough.progress_watch import ProgressWatch
from bough.qemu.pid import read_boot_id
from bough.qemu.plan import Plan
from bough.qemu.process import ExitCause, QemuProcess, find_process, read_exit, start_process
from bough.qemu.qmp import Qmp
from bough.storage import read_tail
from bough.tasks import Tasks

log = logging.getLogger("bough.machines")

#: QEMU's reasons for an expected shutdown (qapi/run-state.json, ShutdownCause).
_WANTED_SHUTDOWNS = frozenset({"guest-shutdown", "host-qmp-quit", "host-qmp-system-reset", "host-ui"})
_TAIL_BYTES = 4096
#: Signals caused by a fault of the process itself.
_OWN_FAULTS = frozenset({"SIGSEGV", "SIGABRT", "SIGBUS", "SIGILL", "SIGFPE", "SIGSYS", "SIGTRAP"})
#: How long a command waits for the agent of an adopted machine.
_TAKEN_UP_S = 3.0
#: How long a stop waits for the agent of a woken guest, before the stop presses the power button.
_WOKEN_S = 10.0
_SETTLED_POLL_S = 0.2
#: QEMU's own time to end, and the bound of that wait on a busy host.
_QUIT_S = 5.0
_QUIT_MOST_S = 60.0

T = TypeVar("T")
Planner = Callable[[MachineRecord, MachinePaths], Awaitable[Plan]]


class Machine:
    def __init__(
        self,
        record: MachineRecord,
        paths: MachinePaths,
        events: Events,
        planner: Planner,
        merged: Callable[[], None],
    ) -> None:
        self.record = record
        self.paths = paths
        self._events = events
        self._planner = planner
        self._turns = Turns(self)
        self._tasks = Tasks()
        self._process: QemuProcess | None = None
        self._qmp: Qmp | None = None
        self._guest = Guest(self)
        self._console: Console | None = None
        self._door: VncDoor | None = None
        self._ports: PortServer | None = None
        hidden = (paths.root.parent.parent, paths.runtime.parent)
        self.mounts = MountKeeper(record.id, hidden, self.tell)
        self.chains = Chains(self, merged)
        self.standby = Standby(self)
        self.boot = Boot(self)
        self.boot_sight = BootSight(self)
        self.clock = ClockKeeper(self)
        self.condition = Condition(self)
        self._stuck_vcpus = StuckVcpus(self)
        self._restarter = Restarter(self)
        self.reach = Reach(self, self._join)
        self._stop_asked = False
        self._shutdown_reason: str | None = None
        #: Why bough ended QEMU without a request.
        self._given_up: str | None = None
        self._taken_up = False
        self._priority: CpuPriority | None = None
        #: The process image from which the process continues.
        self._image: ProcessImage | None = None
        self._ended = asyncio.Event()
        self._ended.set()

    # -- state --------------------------------------------------------------------------------

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
        return self._process.pid if self._process else None

    @property
    def agent_state(self) -> str:
        answers = self._guest.answers and self.condition.found is None
        if not self.record.image_agent:
            return "qemu-guest-agent" if answers else "none"
        return "answering" if answers else "silent"

    @property
    def boot_id(self) -> str | None:
        """Return the id of the guest's boot, from the agent's last hello. Untrusted."""
        return self._guest.boot_id

    @property
    def booted(self) -> bool:
        """Return whether the guest has started all its services, as far as known."""
        return self._guest.answers and self.boot.has_ended

    def stand_back(self, back: bool = True) -> None:
        """Give this machine low or normal priority for processor time; see cpu_priority.py."""
        if self._priority is not None:
            self._priority.stand_back(back)

    def console_tail(self) -> str:
        return read_console(self.paths.console_log, _TAIL_BYTES)

    @property
    def is_free(self) -> bool:
        """Return whether no operation runs."""
        return self._turns.is_free

    # -- operations ---------------------------------------------------------------------------

    def transition(self, doing: str, *allowed: State) -> AbstractAsyncContextManager[None]:
        """Begin an exclusive operation; see Turns."""
        return self._turns.transition(doing, *allowed)

    def claim(self, doing: str) -> AbstractContextManager[None]:
        """Make all operations in the block one operation; see Turns."""
        return self._turns.claim(doing)

    def bury(self) -> None:
        """Mark the machine as deleted: later calls on this object fail."""
        self._turns.end()

    def wrong_state(self, doing: str, *allowed: State) -> WrongState:
        wanted = " or ".join(allowed)
        hints = {
            State.STOPPED: f"bough start {self.name}",
            State.FAILED: f"see why with `bough info {self.name}`, then: bough start {self.name}",
            State.PAUSED: f"bough resume {self.name}",
            State.SUSPENDED: f"bough resume {self.name}",
            State.RUNNING: f"bough stop {self.name}",
        }
        return WrongState(
            f"machine '{self.name}' is {self.state}; {doing} needs it {wanted}",
            hint=hints.get(self.state),
            machine=self.name,
            state=str(self.state),
        )

    async def start(
        self,
        report: Report = ignore_progress,
        *,
        by_policy: bool = False,
        saved: SavedState | None = None,
        hold: bool = False,
    ) -> None:
        """Start the machine. Return when its vCPUs run; `wait_ready` waits for the guest. Cancelling the
        caller does not interrupt the start.

        Args:
            by_policy: a restart after a failure; the count of restarts goes on.
            saved: continue from this state instead of booting.
            hold: only load the saved state and keep the vCPUs paused; `go_on` does the rest.
        """
        await asyncio.shield(self.own(self._start(report, by_policy, saved, hold), "start"))

    async def _start(self, report: Report, by_policy: bool, saved: SavedState | None, hold: bool) -> None:
        resumes = saved is not None and self.record.suspended is not None
        allowed = (State.SUSPENDED,) if resumes else (State.STOPPED, State.FAILED)
        async with self.transition("starting", *allowed):
            if saved is None:  # a fork lives without missing directories, and reports them
                check_sources(self.record.spec.mounts, self.name)
            report(Progress("starting QEMU"))
            before = self.record.model_copy()
            if by_policy:
                restarts = self.record.restarts.model_copy(update={"next": None})
            else:
                self._restarter.cancel()
                # Keep the cause of the last failure: users see it while the machine runs again.
                failed = self.record.failure
                restarts = Restarts(cause=failed.cause if failed else None)
            again = {} if saved is not None else tried_again(self.record)
            fields = {"failure": None, "restarts": restarts, "stopped_in_boot": None, **again}
            self._change(state=State.STARTING, started=now(), **fields)
            ports = PortServer(self.name, self._dial)
            try:
                for forward in self.record.ports:
                    await ports.listen(forward)
                plan = await self._planner(self.record, self.paths)
                process = await self._start_process(plan, saved, hold, report)
            except MachineFailed as error:
                await ports.close()
                self._fail_to_start(error)
                raise
            except BaseException:
                # No QEMU is left. The machine returns to its state before, and the caller gets the error.
                await ports.close()
                self._note(state=before.state, failure=before.failure, started=before.started)
                raise
            self._ports = ports
            jail = process.jail.to_dict() if process.jail else None
            try:
                self._hold(process)
                await self._attach(plan.accelerator, greet=saved is None)
                if saved is not None:
                    await self._take_up(saved)
                if saved is not None and not hold:
                    await self._leave(saved)
            except (BoughError, OSError) as error:
                raise await self._give_up_start(process, error, saved) from error
            state = State.PAUSED if hold else State.RUNNING
            self._note(
                state=state,
                accelerator=plan.accelerator,
                accelerator_note=plan.accelerator_note,
                jail=jail,
            )
        # A pre-warm must keep the snapshot's chains.
        if not hold and (saved is None or saved.prewarm is None):
            self.chains.look()

    async def _start_process(
        self, plan: Plan, saved: SavedState | None, hold: bool, report: Report
    ) -> QemuProcess:
        """Start QEMU. Raises as `start_process`."""
        if saved is not None:
            return await self._start_saved(plan, saved, hold)
        self.boot_sight.new_boot()
        if plan.accelerator_note:
            report(notice(plan.accelerator_note))
        return await start_process(plan, self.paths)

    async def _start_saved(self, plan: Plan, saved: SavedState, hold: bool) -> QemuProcess:
        """Start QEMU from a saved state. Raises as `start_process`."""
        prewarm, image = saved.prewarm, saved.image
        plan = replace(plan, from_template=True, prewarm=prewarm is not None)
        back = hold or (prewarm is not None and not prewarm.is_urgent)
        memory = saved.memory.fileno()
        if image is not None and image.fits(plan):
            self._image = image
            try:
                return await start_process(plan, self.paths, memory=memory, loader=image, back=back)
            except MachineFailed as error:
                self._distrust_image(error.message)
        return await start_process(plan, self.paths, memory=memory, back=back)

    def _distrust_image(self, why: str) -> None:
        if self._image is not None:
            self._image.distrust(self.id, why)
        self._image = None

    def process(self) -> QemuProcess:
        """Return the QEMU process. Raises WrongState: the machine does not run."""
        if self._process is None:
            raise self.wrong_state("this", State.RUNNING)
        return self._process

    async def release_guest(self) -> asyncio.Event:
        """Close the connections to the guest's agent and console, for a capture of the process.

        Return the event that is set when QEMU has reported that the guest closed the agent's port.
        """
        await self._guest.close()
        if self._console is not None:
            await self._console.close()
        return self._guest.port_closed

    async def go_on(self, saved: SavedState, *, name: str, ephemeral: bool) -> None:
        """Complete a held start for a user. Cancelling the caller does not interrupt the start."""
        await asyncio.shield(self.own(self._go_on(saved, name, ephemeral), "start"))

    async def _go_on(self, saved: SavedState, name: str, ephemeral: bool) -> None:
        async with self.transition("starting", State.PAUSED):
            process, moment = self._process, now()
            if process is None:
                raise self.ended_error("while it was a standby machine")
            self.stand_back(False)
            self._change(
                state=State.STARTING,
                spare=False,
                name=name,
                ephemeral=ephemeral,
                created=moment,
                started=moment,
            )
            self._tell_name()
            try:
                await self._leave(saved)
            except (BoughError, OSError) as error:
                raise await self._give_up_start(process, error, saved) from error
            self._note(state=State.RUNNING)
        self.chains.look()

    async def _give_up_start(
        self, process: QemuProcess, error: Exception, saved: SavedState | None
    ) -> BoughError:
        self._distrust_image(str(error))
        process.kill()
        await self._ended_or(5)
        if self.record.suspended is None:
            self._note(state=State.FAILED)
        when = "while it was started" if saved is None else "while it loaded its saved state"
        return self.ended_error(f"{when}: {error}")

    async def _take_up(self, saved: SavedState) -> None:
        """Load the saved state. The vCPUs stay paused at the saved moment. Raises BoughError, OSError."""
        assert self._qmp is not None
        assert self._process is not None
        if not self._process.has_state:
            await load_state(self._qmp, self.pid, saved, announces=self.record.hardware.announces)
        if saved.prewarm is not None:
            await saved.prewarm.state_loaded(self.pid)

    async def _leave(self, saved: SavedState) -> None:
        """Let the guest continue from the saved state. Raises BoughError, OSError."""
        assert self._qmp is not None
        if self.record.suspended is not None:
            # Before the guest can write to its disks: from here on, disks and saved memory do not match any
            # more.
            identity = "clock" if self.record.identity == "known" else self.record.identity
            self._change(suspended=None, identity=identity, event=False)
        self._guest.greet(awake=True)  # before `cont`, so that the guest finds the hello first
        await self._qmp.execute("cont")

    def _fail_to_start(self, error: MachineFailed) -> None:
        error.message = f"machine '{self.name}' did not start: {error.message}"
        error.details.setdefault("machine", self.name)
        error.details.setdefault("console", self.console_tail())
        if self.record.suspended is not None:
            self._change(state=State.SUSPENDED)
            return
        failure = Failure(
            cause=error.message,
            exit_status=error.details.get("exit_status"),
            signal=error.details.get("signal"),
            qemu_stderr=error.details.get("qemu_stderr", ""),
            console=error.details["console"],
        )
        self._note(state=State.FAILED, failure=failure)

    async def adopt(self) -> None:
        """Adopt the machine at the start of the service: find its QEMU, or record QEMU's end."""
        try:
            process = await find_process(self.paths)
        except (BoughError, OSError) as error:
            self._give_up(f"its QEMU cannot be found again: {error}")
            return
        if process is not None and self.record.suspended is not None:
            # The service died while the machine was suspended or resumed. The memory on disk is complete.
            process.kill()
            await process.wait()
            process = None
        if process is not None:
            process.stand_back(False)  # the service may have died in the middle of many forks
        if process is None:
            if self.record.disks_before is not None:
                self._change(disks_before=None, event=False)
            if self.record.suspended is not None:
                self._note(state=State.SUSPENDED)
            elif self.state in LIVE:
                self._settle(read_exit(self.paths), seen=False)
            else:
                self._restarter.take_up()
            return
        self._hold(process)
        try:
            await self._join()
        except (BoughError, OSError) as error:
            if not self._ended.is_set():
                self.reach.lose(error)

    async def _join(self) -> None:
        """Take control of a QEMU that an earlier service started.

        Raises BoughError, OSError: QEMU does not answer. QEMU runs on, and the caller may try again.
        """
        if self._process is None:
            raise QmpLost("its QEMU has ended")
        self._process.name_sockets()
        try:
            runs = await self._rejoin()
        except (BoughError, OSError):
            await self._disconnect()
            raise
        if runs is None:
            return
        self._stop_asked = self.state is State.STOPPING
        self._note(state=State.RUNNING if runs else State.PAUSED)
        self.chains.take_up()
        if self._stop_asked:  # the service died during this stop: complete the stop
            self.own(self.stop(), "stop")
        assert self._ports is not None
        for forward in self.record.ports:
            with contextlib.suppress(Conflict):
                await self._ports.listen(forward)

    async def _rejoin(self) -> bool | None:
        """Connect to an adopted QEMU. Return whether the vCPUs run, or None after the end of a useless QEMU.

        Raises BoughError, OSError.
        """
        self._ports = PortServer(self.name, self._dial)
        await self._attach(self.record.accelerator, adopted=True)
        self._taken_up = True
        assert self._qmp is not None
        await end_live_copy(self._qmp)
        status = (await self._qmp.query("query-status")).get("status")
        await self._finish_snapshot(self._qmp)
        # QEMU waits for a saved state, or continued from a process image. No caller is left to complete the
        # start.
        begins = self.record.spare or self.state is State.STARTING
        if status == "inmigrate" or (begins and status in ("prelaunch", "restore-vm")):
            await self._end_useless("the service ended before its saved state was loaded")
            return None
        # "prelaunch": the guest reset itself at the moment of the pause.
        stands_still = ("paused", "postmigrate", "prelaunch")
        if status in stands_still and self.record.identity == "known":
            self._change(identity="clock", event=False)  # the pause had an unknown length
        if status in stands_still and self.state is not State.PAUSED:
            # The service died during a pause for a snapshot or a suspend.
            await self._qmp.execute("cont")
            return True
        return status not in stands_still

    async def _end_useless(self, why: str) -> None:
        """End a QEMU whose guest has not run, and cannot run."""
        assert self._process is not None
        self._given_up = f"it was ended: {why}"
        self._process.kill()
        await self._ended_or(5)
        self.tell("lost", why)

    async def _finish_snapshot(self, qmp: Qmp) -> None:
        """Complete the record of a snapshot after a death of the service: ask QEMU for the disks in use."""
        before = self.record.disks_before
        if before is None:
            return
        disks = self.record.disks if await writes(qmp, self.record.disks) else before
        self._change(disks=disks, disks_before=None, event=False)

    async def stop(
        self,
        *,
        deadline_s: float | None = None,
        force: bool = False,
        flush: bool = True,
        report: Report = ignore_progress,
    ) -> str:
        """Ask the guest to power off; power off the machine after `deadline_s`. Cancelling the caller does
        not interrupt the stop.

        Args:
            deadline_s: in seconds; None: until the guest makes no progress any more, 180 s at most.
            flush: have QEMU write its cached data to the disks; False for disks that will be deleted.

        Returns "guest" if the guest powered itself off, otherwise "power".
        """
        return await asyncio.shield(self.own(self._stop(deadline_s, force, flush, report), "stop"))

    async def _stop(self, deadline_s: float | None, force: bool, flush: bool, report: Report) -> str:
        if self.state is State.SUSPENDED:
            await self._give_up_memory(force)
            return "power"
        if self._restarter.is_pending and self.state is State.FAILED:
            async with self.transition("being stopped", State.FAILED):
                self._restarter.cancel()
                self._note(state=State.STOPPED, restarts=Restarts(), stopped_in_boot=read_boot_id())
            return "power"
        if self.state not in LIVE:
            raise self.wrong_state("stopping", State.RUNNING, State.PAUSED)
        if not force:
            self.reach.check()
        if self.state is State.STARTING and self.reach.trouble is None:
            raise Conflict(f"machine '{self.name}' is starting just now", machine=self.name)
        if self.state is not State.STOPPING or force:
            paused = self.state is State.PAUSED
            self._stop_asked = True
            self._note(state=State.STOPPING)
            if not force and not self.condition.dead.is_set():
                most_s = STOP_MOST_S if deadline_s is None else deadline_s
                report(Progress("asking the guest to power off", detail=f"at most {most_s:.0f} s"))
                await self._ask_power_off(paused)
        if not force:
            watch = self.watch(STOP_QUIET_S, bound_s=deadline_s, most_s=STOP_MOST_S)
            await watch.until(self._ended, self.condition.dead)
        if self._ended.is_set():
            return "guest" if self._shutdown_reason != "killed" else "power"
        if not self._ended.is_set() and self._process is not None:
            report(Progress("powering off"))
            self._shutdown_reason = "killed"
            if flush:
                await self._quit()
            else:
                self._process.kill()
            await self._ended.wait()
        return "power"

    async def _give_up_memory(self, force: bool) -> None:
        if not force:
            raise WrongState(
                f"machine '{self.name}' is suspended: a stop discards its memory",
                hint=f"bough resume {self.name}; to discard its memory: bough stop {self.name} --force",
                machine=self.name,
                state=str(self.state),
            )
        async with self.transition("being stopped", State.SUSPENDED):
            self._change(state=State.STOPPED, suspended=None, stopped_in_boot=read_boot_id())
            await asyncio.to_thread(shutil.rmtree, self.paths.suspended.root, True)

    async def leave_suspended(self, suspended: Suspended) -> None:
        """Record the suspend, and end QEMU. The memory is on disk, the vCPUs are paused, and the caller holds
        an operation.
        """
        if self.state not in (State.RUNNING, State.PAUSED):
            raise self.ended_error("while it was being suspended")
        self._change(state=State.SUSPENDED, suspended=suspended)
        await self._quit()
        await self._ended.wait()

    async def _ask_power_off(self, paused: bool) -> None:
        with contextlib.suppress(BoughError, OSError):
            if paused and self._qmp is not None:
                await self._qmp.execute("cont")
            if self.condition.is_now(Kind.ASLEEP):
                await self.condition.wake()
                await self._first_of(_WOKEN_S, self._guest.ready, self._ended)
        if self._guest.channel is not None and self._guest.answers:
            try:
                await self._guest.channel.call("power_off", {}, timeout_s=10, exact=True)
                return
            except BoughError:
                pass  # the agent cannot: press the power button
        with contextlib.suppress(BoughError, OSError):
            if self._qmp is not None:
                await self._qmp.execute("system_powerdown")

    async def _quit(self) -> None:
        """Ask QEMU to end, which writes cached data to the disks; then send SIGKILL."""
        if self._qmp is not None:
            with contextlib.suppress(BoughError, OSError, TimeoutError):
                async with asyncio.timeout(2):
                    await self._qmp.execute("quit")
        elif self._process is not None:
            self._process.terminate()
        gone = await self.watch(_QUIT_S, most_s=_QUIT_MOST_S).until(self._ended)
        if not gone and self._process is not None:
            self._process.kill()

    async def give_up(self, why: str) -> None:
        """End a QEMU with a useless guest. The machine becomes `failed`, with that cause.

        Raises:
            Conflict, WrongState: another operation runs, or the machine does not run.
        """
        async with self.transition("being ended", State.RUNNING):
            self._given_up = why
            await self._quit()
            await self._ended.wait()

    async def pause(self) -> None:
        async with self.transition("pausing", State.RUNNING):
            self.condition.check_awake("pausing")
            await self._running_qmp().execute("stop")
            self._note(state=State.PAUSED)

    async def resume(self) -> None:
        async with self.transition("resuming", State.PAUSED):
            qmp = self._running_qmp()
            await self.clock.go_on(lambda: qmp.execute("cont"))
            self._note(state=State.RUNNING)
        if self.record.identity == "new":
            self._guest.settle_soon()

    @property
    def settling(self) -> bool:
        """Return whether the guest is still writing a new identity to its disk."""
        return self._guest.settling

    async def wait_settled(self, *, timeout_s: float = 120) -> None:
        """Wait until the guest has written all of its new identity to disk.

        Raises DeadlineExceeded, MachineFailed.
        """
        watch = self.watch(timeout_s)
        while self.record.identity != "known":
            if await self._first_of(_SETTLED_POLL_S, self._ended):
                raise self.ended_error("before its identity was on its disk")
            if not watch.look():
                raise DeadlineExceeded(
                    f"machine '{self.name}' has not written its identity to its disk", machine=self.name
                )

    def rename(self, name: str) -> None:
        self._turns.check()
        old = self.name
        self._change(name=name, event=False)
        self._tell_name()
        self._events.emit("renamed", machine=self.id, name=name, detail=f"from {old}")

    def renamed(self) -> None:
        """Follow a new name: the guest has the name, but not yet on its disk."""
        self._tell_name()
        self._guest.settle_soon()

    def _tell_name(self) -> None:
        """Pass the name on to the parts that name the machine in errors."""
        for part in (self._ports, self._guest.channel):
            if part is not None:
                part.machine = self.name

    def keep_restarts(self, restarts: Restarts, *, detail: str | None = None) -> None:
        """Record the state of the restart policy; `detail` is the text of an event."""
        self._change(restarts=restarts, event=False)
        if detail is not None:
            self.tell("restarting", detail)

    def cancel_restart(self) -> None:
        self._restarter.cancel()

    async def let_go(self) -> None:
        """Release the machine at the end of the service: close the service's connections and leave QEMU
        running.
        """
        await self._tasks.end()
        await self._disconnect()

    # -- waiting ------------------------------------------------------------------------------

    def watch(
        self, quiet_s: float = BOOT_QUIET_S, *, bound_s: float | None = None, most_s: float | None = None
    ) -> ProgressWatch:
        """Return a watch that begins now, and limits a wait for the guest; see guest_watch.py."""
        signs = guest_signs(self._console, self._guest)
        return watch_guest(self.pid, signs, quiet_s=quiet_s, bound_s=bound_s, most_s=most_s)

    async def wait_ready(self, *, timeout_s: float | None = None, report: Report = ignore_progress) -> None:
        """Wait until the agent has answered and the first boot's setup is done.

        Args:
            timeout_s: a user's bound; None: as long as the guest makes progress.

        Raises:
            MachineFailed: the machine ended meanwhile; carries the end of the console and of QEMU's stderr.
            AgentTimeout: no answer in time; the machine stays as it is.
            GuestRefused: a step of the first boot, the identity or a mount failed; the machine runs on.
            AgentUnavailable: the guest sleeps or has halted.
            BootFailed: a guest without bough's agent cannot boot without help; the machine is left running.
        """
        if not self.record.image_agent:
            await self.boot_sight.wait(timeout_s, report)
            return
        report(Progress("waiting for the guest to answer"))
        watch = self.watch(bound_s=timeout_s)
        if not await self._is_ready(watch):
            self.reach.check()
            raise await self._not_ready(watch)
        if self.condition.mute.is_set() and (error := self.condition.error()) is not None:
            raise error
        if not self._guest.ready.is_set():
            raise self.ended_error(f"before its agent answered, after {watch.waited_s:.1f} s")
        if (refused := first_boot_error(self.record)) is not None:
            raise refused
        if self.mounts.trouble:
            raise trouble_error(self)

    async def _is_ready(self, watch: ProgressWatch) -> bool:
        """Return whether the guest is ready, has ended, or can never be ready, before the watch runs out."""
        events = (self._guest.ready, self._ended, self.condition.mute)
        if await watch.until(*events):
            return True
        if not self._guest.answers or watch.is_bounded:
            return False
        return await self.watch(SET_UP_QUIET_S).until(*events)

    async def _not_ready(self, watch: ProgressWatch) -> AgentTimeout:
        self._distrust_image("its guest did not answer")
        what = "is not done with its first boot" if self._guest.answers else "its agent did not answer"
        sight = recognize(self.console_tail())
        seen = f": {sight.text}" if sight is not None and sight.kind != "login" else ""
        return AgentTimeout(
            f"machine '{self.name}' runs, and {what} {watch.why}{seen}",
            hint=f"look at its console: bough console {self.name}",
            machine=self.name,
            timeout_s=round(watch.waited_s, 1),
            console=self.console_tail(),
            vcpus=[vcpu.text for vcpu in await read_vcpus(self._qmp)],
        )

    async def wait_stopped(self, *, timeout_s: float) -> None:
        if not await self._first_of(timeout_s, self._ended):
            raise DeadlineExceeded(
                f"machine '{self.name}' is still {self.state} after {timeout_s:.0f} s", machine=self.name
            )

    def ended_error(self, when: str) -> MachineFailed:
        failure = self.record.failure
        cause = failure.cause if failure else "the guest powered off"
        return MachineFailed(
            f"machine '{self.name}' stopped {when} ({cause})",
            hint="the end of its console is above" if self.console_tail() else None,
            machine=self.name,
            exit_status=failure.exit_status if failure else None,
            signal=failure.signal if failure else None,
            qemu_stderr=failure.qemu_stderr if failure else "",
            console=self.console_tail(),
        )

    async def _first_of(self, timeout_s: float | None, *events: asyncio.Event) -> bool:
        """Return whether one of the events is set within the time."""
        waits = [asyncio.create_task(event.wait()) for event in events]
        try:
            done, _ = await asyncio.wait(waits, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            return bool(done)
        finally:
            for wait in waits:
                wait.cancel()

    async def _ended_or(self, timeout_s: float) -> bool:
        return await self._first_of(timeout_s, self._ended)

    # -- the guest ----------------------------------------------------------------------------

    async def agent(self) -> AgentChannel | QgaChannel:
        """Return the channel to an agent that answers.

        Raises:
            WrongState: the machine does not run.
            AgentUnavailable: the machine has no agent, or its agent is silent.
            QmpLost: the machine runs but cannot be reached.
        """
        if self.state is not State.RUNNING and self.state is not State.STOPPING:
            raise self.wrong_state("talking to its agent", State.RUNNING)
        self.reach.check()
        if (error := self.condition.error()) is not None:
            raise error
        if not self.record.image_agent and not self._guest.answers:
            raise AgentUnavailable(
                f"machine '{self.name}' has no bough agent, and no qemu-guest-agent answers",
                hint=f"use its console: bough console {self.name}",
                machine=self.name,
            )
        if not self._guest.answers and self._taken_up:
            # A new service has not said hello yet to a guest that may have been ready for long.
            await self.watch(_TAKEN_UP_S).until(self._guest.ready, self._ended)
        if self._guest.channel is None or not self._guest.answers:
            raise AgentUnavailable(
                f"the agent of machine '{self.name}' does not answer (yet)",
                hint=f"bough wait {self.name}",
                machine=self.name,
                console=self.console_tail(),
            )
        DEMAND.notice()
        if self._priority is not None:
            self._priority.step_forward()
        return self._guest.channel

    async def _dial(self, guest_port: int) -> Any:
        return await (await self.agent()).dial(guest_port)

    async def follow_ports(self, channel: AgentChannel) -> None:
        """Open each forwarded port while a program in the guest listens on it."""
        if self._ports is not None:
            await self._ports.follow(channel)

    def console(self) -> Console:
        self.reach.check()
        if self._console is None:
            raise self.wrong_state("its console", State.RUNNING)
        return self._console

    def screen(self) -> Qmp:
        """Return the connection that takes pictures of the screen and presses keys.

        Raises:
            WrongState: the machine does not run, or has no screen.
            QmpLost: the machine runs but cannot be reached.
        """
        self.reach.check()
        if self._qmp is None:
            raise self.wrong_state("its screen", State.RUNNING)
        if not self.record.media.display:
            raise WrongState(
                f"machine '{self.name}' has no screen",
                hint="a machine gets one when it is created: bough create --display",
                machine=self.name,
            )
        return self._qmp

    async def add_port(self, forward: PortForward) -> PortForward:
        if any(known.host_port == forward.host_port for known in self.record.ports if forward.host_port):
            raise Conflict(
                f"machine '{self.name}' forwards port {forward.host_port} already", machine=self.name
            )
        if self._ports is not None:
            forward = await self._ports.listen(forward)
        elif forward.host_port == 0:
            raise WrongState(
                f"machine '{self.name}' is {self.state}; a free port can be chosen only while it runs",
                hint="give a port of the host",
                machine=self.name,
            )
        self._change(ports=[*self.record.ports, forward], event=False)
        return forward

    async def remove_port(self, host_port: int) -> None:
        left = [forward for forward in self.record.ports if forward.host_port != host_port]
        if len(left) == len(self.record.ports):
            raise WrongState(f"machine '{self.name}' forwards no port {host_port}", machine=self.name)
        if self._ports is not None:
            with contextlib.suppress(BoughError):
                await self._ports.unlisten(host_port)
        self._change(ports=left, event=False)

    # -- the QEMU process ---------------------------------------------------------------------

    def _hold(self, process: QemuProcess) -> None:
        """Watch a running QEMU, until its end."""
        self._process = process
        self._priority = CpuPriority(process, lambda: self._guest.is_talked_to)
        self._stop_asked = self._taken_up = False
        self._shutdown_reason = self._given_up = None
        self.clock.new_process()
        self._ended.clear()
        self.own(self._watch_process(process), "watch process")

    async def _attach(self, accelerator: str | None, *, greet: bool = True, adopted: bool = False) -> None:
        """Connect to all of QEMU's sockets. Raises BoughError, OSError; then `_disconnect` closes open
        connections.
        """
        # The service answers no request before it has adopted all machines; a QEMU that hangs is tried again.
        bound = {"timeout_s": ADOPT_TIMEOUT_S} if adopted else {}
        self._qmp = await Qmp.connect(self.paths.qmp_socket, **bound)
        self.own(self._watch_qmp(self._qmp), "watch QMP")
        self._console = Console(
            self.paths.console_socket,
            self.paths.console_log,
            bytes_per_s=self.record.spec.limits.console,
        )
        await self._console.connect()
        await self.condition.begin(adopted=adopted)
        if self.record.media.display:
            self._door = VncDoor(self.paths.vnc_socket, self._qmp)
            self._door.open()
        version = self._qmp.version
        self._stuck_vcpus.begin(accelerator, version)
        await self._guest.connect(same_addresses=same_addresses.is_needed(accelerator, version))
        if greet:
            self._guest.greet()

    async def _watch_qmp(self, qmp: Qmp) -> None:
        async for event in qmp.events():
            name, data = str(event.get("event")), event.get("data") or {}
            self.condition.heard(name, data)
            if name == "STOP":
                self.clock.vcpus_stopped(event)
            elif name == "RESUME":
                self.clock.vcpus_run(event)
            if name == "SHUTDOWN":
                self._shutdown_reason = str(data.get("reason", "unknown"))
            elif name == "STOP" and self.state is State.RUNNING and self._turns.is_free:
                self._note(state=State.PAUSED)
            elif name == "RESUME" and self.state is State.PAUSED and self._turns.is_free:
                self._note(state=State.RUNNING)
            elif name == "BLOCK_IO_ERROR":
                why = "no space left on the host" if data.get("nospace") else str(data.get("reason", ""))
                self.tell("disk-error", why)
            elif name == "VSERPORT_CHANGE" and data.get("id") == "agent":
                self._guest.port_changed(bool(data.get("open")))

    async def _watch_process(self, process: QemuProcess) -> None:
        cause = await process.wait()
        # Read all of QEMU's last output before the state changes, so that a failure includes the output.
        await self._disconnect(ended=True)
        if cause.signal in _OWN_FAULTS:
            self._distrust_image(cause.text)
        self.reach.end()
        self._process = self._priority = self._image = None
        self._settle(cause, seen=True)
        self.condition.end()
        self._ended.set()

    async def _disconnect(self, *, ended: bool = False) -> None:
        if self._ports is not None:
            await self._ports.close()
            self._ports = None
        await self._guest.close()
        if ended and self._console is not None:
            await self._console.read_rest()
        for closable in (self._door, self._console, self._qmp):
            if closable is not None:
                with contextlib.suppress(BoughError, OSError):
                    await closable.close()
        self._door = self._console = self._qmp = None

    def _settle(self, cause: ExitCause | None, *, seen: bool) -> None:
        """Record QEMU's end: `stopped` if the end was expected, otherwise `failed` with the cause.

        Args:
            seen: this service saw the end. If not, QEMU may have ended because the host went down.
        """
        wanted = self._shutdown_reason in _WANTED_SHUTDOWNS
        asked = self._stop_asked or self.state is State.STOPPING
        broken = self._given_up is not None or self.condition.is_now(Kind.PANICKED)
        clean = cause is not None and cause.exit_status == 0
        if self.record.suspended is not None:
            if self.state is not State.SUSPENDED:
                self._note(state=State.SUSPENDED)
            return
        if asked or (not broken and (wanted or clean)):
            boot = read_boot_id() if seen or self.state is State.STOPPING else None
            self._note(state=State.STOPPED, failure=None, restarts=Restarts(), stopped_in_boot=boot)
            return
        if self._given_up is not None:
            text = self._given_up
        elif broken:
            text = "the guest's kernel panicked"
        elif cause is not None:
            text = cause.text
        else:
            text = "its QEMU ended unobserved (a power loss, or a restart of the host)"
        self._give_up(text, cause)

    def _give_up(self, text: str, cause: ExitCause | None = None) -> None:
        failure = Failure(
            cause=text,
            exit_status=cause.exit_status if cause else None,
            signal=cause.signal if cause else None,
            qemu_stderr=read_tail(self.paths.qemu_log, _TAIL_BYTES),
            console=self.console_tail(),
        )
        self._note(state=State.FAILED, failure=failure)
        self._restarter.after_failure()

    # -- bookkeeping --------------------------------------------------------------------------

    def change(self, *, event: bool = False, **fields: Any) -> None:
        """Change the record; for callers that hold an operation."""
        self._change(event=event, **fields)

    def note(self, **fields: Any) -> bool:
        """Record what has happened to QEMU, for callers that hold an operation. Return whether the record was
        written: with a full disk it changes in memory alone.
        """
        return self._note(**fields)

    def tell(self, kind: str, detail: str = "") -> None:
        """Emit an event about the machine; standby machines emit no events."""
        if self.record.spare:
            return
        self._events.emit(kind, machine=self.id, name=self.name, detail=detail)

    def own(self, work: Coroutine[Any, Any, T], what: str) -> asyncio.Task[T]:
        """Begin a task that ends when the service releases the machine, not when a caller disconnects."""
        return self._tasks.begin(work, f"{self.name}: {what}")

    def channel(self) -> AgentChannel | None:
        """Return the channel to bough's agent if the agent answers, or None."""
        return self._guest.agent

    def answering(self) -> AgentChannel | QgaChannel | None:
        """Return the channel to an answering agent, bough's or qemu-guest-agent, or None."""
        return self._guest.channel if self._guest.answers else None

    def qmp(self) -> Qmp:
        """Return the connection to QMP. Raises WrongState: the machine does not run. QmpLost: no
        connection.
        """
        return self._running_qmp()

    def _running_qmp(self) -> Qmp:
        self.reach.check()
        if self._qmp is None:
            raise self.wrong_state("this", State.RUNNING)
        return self._qmp

    def _change(self, *, event: bool = True, **fields: Any) -> None:
        """Change the record on disk, then in memory, so that no event comes too early."""
        changed = self.record.model_copy(update=fields)
        changed.write(self.paths)
        self._take(changed, event=event, **fields)

    def _note(self, **fields: Any) -> bool:
        """Record what happened to QEMU, even if the disk is full. The next change writes the record, or the
        next service finds the state out again. Return whether the record was written.
        """
        changed, written = self.record.model_copy(update=fields), True
        try:
            changed.write(self.paths)
        except (NoSpace, OSError) as error:
            written = False
            log.error(
                "the record of machine %s (now %s) cannot be written: %s", self.id, changed.state, error
            )
        self._take(changed, event=True, **fields)
        return written

    def _take(self, changed: MachineRecord, *, event: bool, **fields: Any) -> None:
        check_transition(self.id, self.record.state, changed.state)
        self.record = changed
        if event and "state" in fields and not changed.spare:
            detail = changed.failure.cause if changed.failure else ""
            self._events.emit(str(changed.state), machine=self.id, name=self.name, detail=detail)
