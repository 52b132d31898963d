"""Start a machine: boot it, or continue from a saved state."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import Any, Protocol

from bough.errors import BoughError, HostLacks, MachineFailed
from bough.machines.boot_sight import BootSight
from bough.machines.disks.merging import Chains
from bough.machines.first_boot import tried_again
from bough.machines.forwards import Forwards
from bough.machines.guest import Guest
from bough.machines.program import ContainerProgram
from bough.machines.record import Failure, MachineRecord, Restarts, now
from bough.machines.restart import Restarter
from bough.machines.saved_state import SavedState, load_state
from bough.machines.state import State
from bough.machines.vm.ending import Ending
from bough.machines.vm.running import RunningVm
from bough.mounts.source import check_sources
from bough.paths import MachinePaths
from bough.progress import Progress, Report, notice
from bough.qemu.plan import Plan
from bough.qemu.process import QemuProcess
from bough.tasks import finish

#: Resolve the plan of the next start.
Planner = Callable[[MachineRecord, MachinePaths], Awaitable[Plan]]
#: Start QEMU, as `start_process`.
Launch = Callable[..., Awaitable[QemuProcess]]

#: Return the digest of the agent disk for the next boot of a machine; None: it has none.
AgentDiskChoice = Callable[[MachineRecord, Report], Awaitable[str | None]]

#: How long a QEMU may take to end after SIGKILL.
_KILLED_S = 5.0


async def keep_agent_disk(record: MachineRecord, report: Report) -> str | None:
    """An AgentDiskChoice: the disk of the last boot."""
    return record.agent_disk


class Host(Protocol):
    """The parts of a machine that a Start uses."""

    @property
    def record(self) -> MachineRecord: ...
    @property
    def paths(self) -> MachinePaths: ...
    @property
    def name(self) -> str: ...
    @property
    def chains(self) -> Chains: ...
    @property
    def boot_sight(self) -> BootSight: ...
    @property
    def program(self) -> ContainerProgram: ...
    def operation(self, doing: str, *allowed: State) -> AbstractAsyncContextManager[None]: ...
    def change(self, *, event: bool = ..., **fields: Any) -> None: ...
    def note(self, **fields: Any) -> bool: ...
    def console_tail(self) -> str: ...
    def tell_name(self) -> None: ...


class Start:
    """The starts of one machine, one at a time."""

    def __init__(
        self,
        machine: Host,
        vm: RunningVm,
        guest: Guest,
        ending: Ending,
        forwards: Forwards,
        restarter: Restarter,
        planner: Planner,
        launch: Launch,
        choose_agent_disk: AgentDiskChoice,
    ) -> None:
        self._machine = machine
        self._vm = vm
        self._guest = guest
        self._ending = ending
        self._forwards = forwards
        self._restarter = restarter
        self._planner = planner
        self._launch = launch
        self._choose_agent_disk = choose_agent_disk

    async def run(self, report: Report, *, by_policy: bool, saved: SavedState | None, hold: bool) -> None:
        """Start the machine. Return when the vCPUs run. The caller must not be cancelled.

        Args:
            by_policy: a restart after a failure; the count of restarts goes on.
            saved: continue from this state instead of booting.
            hold: only load the saved state and keep the vCPUs paused; `go_on` does the rest.
        """
        machine = self._machine
        resumes = saved is not None and machine.record.suspended is not None
        allowed = (State.SUSPENDED,) if resumes else (State.STOPPED, State.FAILED)
        async with machine.operation("starting", *allowed):
            if saved is None:  # a fork lives without missing directories, and reports them
                check_sources(machine.record.spec.mounts, machine.name)
            report(Progress("starting QEMU"))
            before = machine.record
            self._enter_starting(by_policy, saved)
            try:
                await self._forwards.bind()
                if saved is None:
                    await self._renew_agent_disk(report)
                plan = await self._plan(saved)
                process = await self._start_process(plan, saved, hold, report)
            except MachineFailed as error:
                await self._forwards.close()
                self._fail(error)
                raise
            except BaseException:
                # No QEMU is left. The machine returns to the state before, and the caller gets the error.
                await finish(self._forwards.close())
                machine.note(state=before.state, failure=before.failure, started=before.started)
                raise
            jail = process.jail.to_dict() if process.jail else None
            try:
                await self._bring_up(process, plan, saved, hold)
            except (BoughError, OSError) as error:
                raise await self._give_up(process, error, saved) from error
            machine.note(
                state=State.PAUSED if hold else State.RUNNING,
                accelerator=plan.accelerator,
                accelerator_note=plan.accelerator_note,
                jail=jail,
            )
        # A pre-warm must keep the snapshot's chains.
        if not hold and (saved is None or saved.prewarm is None):
            machine.chains.look()

    def _enter_starting(self, by_policy: bool, saved: SavedState | None) -> None:
        record = self._machine.record
        if by_policy:
            restarts = record.restarts.model_copy(update={"next": None})
        else:
            self._restarter.cancel()
            # Keep the cause of the last failure: users see it while the machine runs again.
            restarts = Restarts(cause=record.failure.cause if record.failure else None)
        again = {} if saved is not None else tried_again(record)
        fields = {"failure": None, "restarts": restarts, "stopped_in_boot": None, **again}
        fields["clock_fault"] = None
        if saved is None:
            fields["program"] = self._machine.program.at_boot()
        self._machine.change(event=True, state=State.STARTING, started=now(), **fields)

    async def _renew_agent_disk(self, report: Report) -> None:
        """Choose the newest agent disk. Saved memory continues with its own."""
        record = self._machine.record
        digest = await self._choose_agent_disk(record, report)
        if digest != record.agent_disk:
            self._machine.change(agent_disk=digest)

    async def _plan(self, saved: SavedState | None) -> Plan:
        """Return the plan of a start. Saved memory continues on the same accelerator only.

        Raises:
            HostLacks: the accelerator of the memory does not work here.
        """
        machine = self._machine
        its = saved.accelerator if saved is not None else None
        spec = machine.record.spec.model_copy(update={"accelerator": its})
        try:
            plan = await self._planner(machine.record, machine.paths)
            if its in (None, plan.accelerator):
                return plan
            plan = await self._planner(machine.record.model_copy(update={"spec": spec}), machine.paths)
        except HostLacks as error:
            if its is None or not error.message.startswith(f"{its} does not work"):
                raise
            raise HostLacks(
                f"the memory of machine '{machine.name}' was saved on {its}, and continues there alone: "
                f"{error.message}",
                hint="fork or import its disks alone, and boot: --cold",
            ) from error
        note = (
            f"the memory of the machine was saved on {its}, so it continues there; a new boot chooses again"
        )
        return replace(plan, accelerator_note=plan.accelerator_note or note)

    async def _start_process(
        self, plan: Plan, saved: SavedState | None, hold: bool, report: Report
    ) -> QemuProcess:
        """Start QEMU. Raises as `start_process`."""
        if plan.accelerator_note:
            report(notice(plan.accelerator_note))
        if saved is not None:
            return await self._start_saved(plan, saved, hold)
        plan = self._keep_boot_cpu(plan)
        self._machine.boot_sight.new_boot()
        return await self._launch(plan, self._machine.paths)

    def _keep_boot_cpu(self, plan: Plan) -> Plan:
        """Return the plan of a boot. The record keeps its CPU, which snapshots must find again."""
        plan = plan.for_boot()
        hardware = self._machine.record.hardware
        if plan.cpu_model != hardware.cpu_model:
            hardware = hardware.model_copy(update={"cpu_model": plan.cpu_model})
            self._machine.change(hardware=hardware)
        return plan

    async def _start_saved(self, plan: Plan, saved: SavedState, hold: bool) -> QemuProcess:
        """Start QEMU from a saved state. Raises as `start_process`."""
        paths, memory, prewarm, image = self._machine.paths, saved.memory.fileno(), saved.prewarm, saved.image
        plan = replace(plan, from_template=True, prewarm=prewarm is not None)
        back = hold or (prewarm is not None and not prewarm.is_urgent)
        if image is not None and image.fits(plan):
            self._vm.image = image
            try:
                return await self._launch(plan, paths, memory=memory, loader=image, back=back)
            except MachineFailed as error:
                self._vm.distrust_image(error.message)
        return await self._launch(plan, paths, memory=memory, back=back)

    async def _bring_up(self, process: QemuProcess, plan: Plan, saved: SavedState | None, hold: bool) -> None:
        """Connect to QEMU, and continue from the saved state, if any. Raises BoughError, OSError."""
        self._vm.hold(process)
        await self._vm.connect(plan.accelerator, greet=saved is None)
        if saved is not None:
            await self._load(process, saved)
        if saved is not None and not hold:
            await self._leave()

    async def go_on(self, saved: SavedState, *, name: str, ephemeral: bool) -> None:
        """Complete a held start for a user. The caller must not be cancelled."""
        machine = self._machine
        async with machine.operation("starting", State.PAUSED):
            process, moment = self._vm.process, now()
            if process is None:
                raise self._ending.error("while it was a standby machine")
            self._vm.stand_back(False)
            user = {"standby": False, "name": name, "ephemeral": ephemeral}
            machine.change(event=True, state=State.STARTING, created=moment, started=moment, **user)
            machine.tell_name()
            try:
                await self._leave()
            except (BoughError, OSError) as error:
                raise await self._give_up(process, error, saved) from error
            machine.note(state=State.RUNNING)
        machine.chains.look()

    async def _load(self, process: QemuProcess, saved: SavedState) -> None:
        """Load the saved state. The vCPUs stay paused at the saved moment. Raises BoughError, OSError."""
        qmp = self._vm.qmp
        assert qmp is not None
        if not process.has_state:
            announces = self._machine.record.hardware.announces
            await load_state(qmp, self._vm.pid, saved, announces=announces)
        if saved.prewarm is not None:
            await saved.prewarm.state_loaded(self._vm.pid)

    async def _leave(self) -> None:
        """Let the guest continue from the saved state. Raises BoughError, OSError."""
        record, qmp = self._machine.record, self._vm.qmp
        assert qmp is not None
        if record.suspended is not None:
            # Before the guest can write to its disks: from here on, disks and saved memory do not match any
            # more.
            identity = "clock" if record.identity == "known" else record.identity
            self._machine.change(suspended=None, identity=identity)
        self._guest.greet(awake=True)  # before `cont`, so the guest finds the hello first
        await qmp.execute("cont")

    async def _give_up(self, process: QemuProcess, error: Exception, saved: SavedState | None) -> BoughError:
        self._vm.distrust_image(str(error))
        process.kill()
        await self._vm.ended_within(_KILLED_S)
        if self._machine.record.suspended is None:
            self._machine.note(state=State.FAILED)
        when = "while it was started" if saved is None else "while it loaded its saved state"
        return self._ending.error(f"{when}: {error}")

    def _fail(self, error: MachineFailed) -> None:
        """Record that no QEMU started, and complete the error."""
        machine = self._machine
        error.message = f"machine '{machine.name}' did not start: {error.message}"
        error.details.setdefault("machine", machine.name)
        error.details.setdefault("console", machine.console_tail())
        if machine.record.suspended is not None:
            machine.change(event=True, state=State.SUSPENDED)
            return
        failure = Failure(
            cause=error.message,
            exit_status=error.details.get("exit_status"),
            signal=error.details.get("signal"),
            qemu_stderr=error.details.get("qemu_stderr", ""),
            console=error.details["console"],
        )
        machine.note(state=State.FAILED, failure=failure)
