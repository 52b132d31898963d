"""`run`: a new machine that has answered, from a booted snapshot or a standby machine if possible."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from bough.errors import Conflict, InvalidInput, MachineFailed, NotFound
from bough.forks.booted import is_neutral
from bough.forks.fork_kind import ForkKind
from bough.forks.loaded import LoadedForks
from bough.forks.saved_states import SavedStates
from bough.forks.standby import StandbyMachines
from bough.guest.channel import AgentChannel
from bough.hypervisor.booted_snapshots import BootedSnapshots
from bough.hypervisor.creation import Creation
from bough.hypervisor.description import report_emulation, report_exposed
from bough.hypervisor.fork_maker import ForkMaker, ForkOrder
from bough.hypervisor.lifetimes import EPHEMERAL_GRACE_S, Lifetimes
from bough.hypervisor.names import Names
from bough.hypervisor.snapshot_keeper import SnapshotKeeper
from bough.hypervisor.waiting_machines import WaitingMachines
from bough.images.store import ImageStore
from bough.machines.machine import Machine
from bough.machines.record import Membership
from bough.machines.state import State
from bough.progress import Progress, Report, ignore_progress, notice, without_repeats
from bough.snapshots.store import SnapshotManifest
from bough.spec import MachineSpec, parse_spec
from bough.spec.program import check_program, with_exposed_ports

log = logging.getLogger("bough.hypervisor")

#: How long a guest whose program has ended may take to power off.
_POWER_OFF_S = 30.0


class Running:
    def __init__(
        self,
        store: ImageStore,
        creation: Creation,
        names: Names,
        lifetimes: Lifetimes,
        keeper: SnapshotKeeper,
        booted: BootedSnapshots,
        states: SavedStates,
        maker: ForkMaker,
        waiting: WaitingMachines,
        standby: StandbyMachines,
        loaded: LoadedForks,
    ) -> None:
        self._store = store
        self._creation = creation
        self._names = names
        self._lifetimes = lifetimes
        self._keeper = keeper
        self._booted = booted
        self._states = states
        self._maker = maker
        self._waiting = waiting
        self._standby = standby
        self._loaded = loaded

    async def run(
        self,
        data: dict[str, Any],
        *,
        name: str | None = None,
        force: bool = False,
        ephemeral: bool = False,
        cold: bool = False,
        timeout_s: float | None = None,
        member: Membership | None = None,
        program: bool = True,
        report: Report = ignore_progress,
    ) -> Machine:
        """Return a new machine that has answered.

        Args:
            member: the machine's place in a project.
            program: start the container image's program. False: the caller runs a command.
            cold: boot it, also if a booted snapshot would serve.

        Raises:
            As `create`: nothing was made. MachineFailed, AgentTimeout, GuestRefused: the machine did not
            become ready, or its program ended at once; the machine is kept unless it is ephemeral.
        """
        report = without_repeats(report)
        spec = await self._creation.check(data, force=force, member=member)
        if name is not None:
            self._names.check_free(name)
        machine = None
        if name is None and not cold and is_neutral(spec):
            machine = await self._waiting.take_standby(self._serves(spec), name=None, ephemeral=ephemeral)
        manifest = None if cold or machine is not None else await self._booted.find(spec, report, timeout_s)
        if manifest is not None and member is None and is_neutral(spec):
            self._loaded.expect(ForkKind(manifest, "new", spec))
        try:
            with self._loaded.forking():
                if manifest is not None:
                    if program:
                        check_program(spec, manifest.container)
                    machine = await self._fork_booted(manifest, spec, name, ephemeral, member, report)
                if machine is None:
                    machine = await self._creation.create(
                        data,
                        name=name,
                        force=force,
                        ephemeral=ephemeral,
                        member=member,
                        program=program,
                        report=report,
                    )
                    if not program:
                        machine.program.leave_out()
                with self._lifetimes.hold(machine, grace_s=EPHEMERAL_GRACE_S):
                    if machine.state is State.STOPPED:
                        await machine.start(report)
                    report_emulation([machine], report)
                    await machine.wait_ready(timeout_s=timeout_s, report=report)
                    if program:
                        await self._start_program(machine)
                    report_exposed(machine, report)
            return machine
        except BaseException:
            if ephemeral and machine is not None:
                self._lifetimes.expire_unless_held(machine.id, grace_s=0)
            raise

    @staticmethod
    async def _start_program(machine: Machine) -> None:
        """Start the program of a machine that continues from a booted snapshot, which runs none."""
        if machine.record.container is not None and machine.record.program is None:
            channel = await machine.agent()
            assert isinstance(channel, AgentChannel)  # the image has ours
            try:
                await machine.program.start(channel)
            except MachineFailed:
                await machine.vm.ended_within(_POWER_OFF_S)  # the caller may look at the state
                raise

    async def _fork_booted(
        self,
        manifest: SnapshotManifest,
        spec: MachineSpec,
        name: str | None,
        ephemeral: bool,
        member: Membership | None,
        report: Report,
    ) -> Machine | None:
        """Return a fork of the booted snapshot; None: a damaged snapshot was deleted, and the
        machine boots.
        """
        report(Progress("starting from the booted image"))
        spec = with_exposed_ports(spec, manifest.container)
        tree = self._keeper.tree
        try:
            with tree.using(manifest):
                saved = await self._states.get(manifest)
                order = ForkOrder(manifest, saved, name=name, ephemeral=ephemeral, spec=spec, member=member)
                kind = ForkKind(manifest, "new", spec)
                machine = None
                if member is None:  # a fork loaded in advance belongs to no project
                    machine = await self._waiting.take_loaded(kind, name, order.stem, ephemeral=ephemeral)
                return machine or await self._maker.make(order)
        except MachineFailed as error:
            log.warning("the booted snapshot %s cannot be used: %s", manifest.id, error)
            report(notice(f"the machine boots: its booted snapshot cannot be used ({error})"))
            self._keeper.drop(manifest)
            return None

    def _serves(self, spec: MachineSpec) -> Callable[[Machine], bool]:
        """Return a check whether a standby machine has the spec, and the image currently named
        by the label.
        """
        try:
            digest = self._store.resolve(spec.image, spec.arch).digest
        except (NotFound, Conflict):
            return lambda _: False
        return lambda machine: (
            machine.record.forked_from is None
            and machine.record.spec == spec
            and machine.record.image_digest == digest
        )

    def want_standby(self, data: dict[str, Any], count: int) -> None:
        """Keep `count` standby machines of a spec; 0 stops keeping them.

        Raises:
            InvalidSpec: the spec makes no sense. InvalidInput: such a machine cannot stand by.
        """
        if count and not is_neutral(parse_spec(data)):
            raise InvalidInput(
                "a standby machine has no host name, users, files, commands, ports, limits or mounts",
                hint="leave those out; a run that asks for them takes no standby machine",
            )
        self._standby.want({"spec": data}, count)
