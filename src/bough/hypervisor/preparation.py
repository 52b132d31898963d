"""Preparations before a user's request: standby machines, forks loaded in advance, pre-warms."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial

from bough.errors import HostLacks, InvalidInput, MachineFailed, NotFound
from bough.forks.fork_kind import ForkKind
from bough.forks.loaded import LoadedFork
from bough.forks.process_image.availability import Availability
from bough.forks.process_image.capture_fork import capture_fork
from bough.forks.process_image.identifiers import fit_of
from bough.forks.process_image.image import ProcessImage
from bough.forks.process_image.rewind import prepare_rewind, wait_quiet
from bough.forks.saved_states import SavedStates
from bough.forks.standby import StandbySource
from bough.forks.urgency import Trial, Urgency
from bough.guest.channel import AgentChannel
from bough.hypervisor.booted_snapshots import BootedSnapshots
from bough.hypervisor.fork_maker import ForkMaker, ForkOrder
from bough.hypervisor.inventory import Inventory
from bough.hypervisor.lifetimes import Lifetimes
from bough.hypervisor.snapshot_keeper import SnapshotKeeper
from bough.machines.first_boot import run_script
from bough.machines.identity import prepare_guest, settle_identity
from bough.machines.machine import Machine
from bough.machines.record import MachineDisk, new_machine_id
from bough.machines.saved_state import SavedState
from bough.progress import ignore_progress
from bough.qemu.plan import Plan
from bough.snapshots.store import SnapshotManifest
from bough.snapshots.tree import Identity
from bough.spec import parse_spec
from bough.spec.model import used_settings
from bough.spec.settings import barring_process_image
from bough.tasks import finish

#: Number of commands run by a pre-warmed fork before the capture of the process.
_PREWARM_COMMANDS = 3
_STANDBY_COMMANDS = 3
_COMMAND_S = 60.0
#: Number of wake-ups of a standby machine before a user's request, and the pause before each wake-up.
_WAKE_COUNT = 2
_PAUSE_S = 0.2


class Preparation:
    def __init__(
        self,
        inventory: Inventory,
        lifetimes: Lifetimes,
        keeper: SnapshotKeeper,
        booted: BootedSnapshots,
        states: SavedStates,
        maker: ForkMaker,
        availability: Availability,
    ) -> None:
        self._inventory = inventory
        self._lifetimes = lifetimes
        self._keeper = keeper
        self._booted = booted
        self._states = states
        self._maker = maker
        self._availability = availability

    # -- standby machines (forks/standby.py) ---------------------------------------------------

    async def make_standby(self, source: StandbySource) -> Machine:
        """Return a standby machine of a spec or a snapshot.

        Raises:
            BoughError: it could not be made; nothing is left.
        """
        if "snapshot" in source:
            manifest, spec = self._keeper.tree.store.resolve(source["snapshot"]), None
        else:
            spec = parse_spec(source["spec"])
            booted = await self._booted.find(spec, ignore_progress)
            if booted is None:
                raise InvalidInput(f"machines of {spec.image} with these settings always boot: none stand by")
            manifest = booted
        with self._keeper.tree.using(manifest):
            saved = await self._states.get(manifest)
            order = ForkOrder(manifest, saved, ephemeral=True, spec=spec, standby=True)
            try:
                machine = await self._maker.make(order)
            except MachineFailed:
                if spec is not None:  # damaged: the next attempt boots the image again
                    self._keeper.drop(manifest)
                raise
        return await self._settle_standby(machine)

    async def _settle_standby(self, machine: Machine) -> Machine:
        """Wait until the machine has answered and settled; run commands; wake the machine; leave the machine
        paused.
        """
        self._lifetimes.pin(machine)
        try:
            await machine.wait_ready()
            channel = await machine.agent()
            for _ in range(_STANDBY_COMMANDS):
                await run_script(channel, "true", timeout_s=_COMMAND_S)
            await machine.readiness.wait_settled()
            await run_script(channel, "true", timeout_s=_COMMAND_S)
            if isinstance(channel, AgentChannel):
                await prepare_guest(channel)
            await machine.pause()
            for _ in range(_WAKE_COUNT):
                await asyncio.sleep(_PAUSE_S)
                await machine.standby.exercise()
        except BaseException:
            await finish(self._lifetimes.delete_standby(machine))
            raise
        return machine

    async def wake_standby(self, machine: Machine) -> None:
        """Let a standby machine run idle. Raises BoughError: it cannot be used."""
        await machine.standby.let_run()

    # -- forks loaded in advance (forks/loaded.py) ----------------------------------------------

    async def load_fork(self, kind: ForkKind) -> LoadedFork:
        """Return a fork whose QEMU has loaded the state. Raises BoughError, OSError."""
        with self._keeper.used_in_background(kind.manifest):
            saved = await self._saved_state(kind.manifest)
            order = ForkOrder(
                kind.manifest, saved, kind.identity, ephemeral=True, spec=kind.spec, standby=True, hold=True
            )
            machine = await self._maker.make(order)
        self._lifetimes.pin(machine)
        return LoadedFork(kind, machine, saved)

    async def _saved_state(self, manifest: SnapshotManifest) -> SavedState:
        """The state of a snapshot that may still be being written. Raises NotFound."""
        store = self._keeper.tree.store
        saved = await self._states.get(store.get(manifest.id)) if store.has(manifest.id) else None
        if saved is None:
            raise NotFound(f"the memory of snapshot {manifest.id} is gone")
        return saved

    # -- pre-warms (forks/prewarm.py, forks/process_image/) ----------------------------------

    async def prewarm(self, kind: ForkKind, urgency: Urgency) -> ProcessImage:
        """Return a process image from which forks of the snapshot continue.

        Raises:
            BoughError, OSError: forks of the snapshot start QEMU.
        """
        with self._keeper.used_in_background(kind.manifest):
            plan = await self._check_process_image(kind)
            await self._availability.require(plan.qemu)
            saved = await self._saved_state(kind.manifest)
            image = await self._make_image(kind, saved, urgency)
            if await self._availability.needs_self_test(plan.qemu):
                await self._availability.self_test(
                    plan.qemu, partial(self._try_out, kind, saved, image, urgency)
                )
            return image

    async def _make_image(self, kind: ForkKind, saved: SavedState, urgency: Urgency) -> ProcessImage:
        devices, rewind = prepare_rewind(saved.devices, urgency)
        start = SavedState(saved.memory, devices, prewarm=rewind, accelerator=saved.accelerator)
        async with self._throw_away(kind, start, "prewarm") as machine:
            await self._exercise(machine, urgency)
            overlays = await asyncio.to_thread(self._keeper.tree.fresh_overlays, kind.manifest, machine)
            planner = self._inventory.plan_of
            return await capture_fork(machine, rewind, overlays, saved.memory, planner)

    async def _try_out(
        self, kind: ForkKind, saved: SavedState, image: ProcessImage, urgency: Urgency
    ) -> None:
        """Check that a fork continued from the image works. Raises BoughError, OSError."""
        start = replace(saved, image=image, prewarm=Trial(urgency))
        async with self._throw_away(kind, start, "self-test") as machine:
            await self._exercise(machine, urgency)
            await machine.pause()
            await machine.resume()
            # Not agent(): that is a user's request, and would end this background work.
            channel = machine.channel()
            assert isinstance(channel, AgentChannel)  # the image has ours
            await run_script(channel, "true", timeout_s=_COMMAND_S)
            if not image.is_of_use:
                raise MachineFailed("the fork could not start from the process image")

    @contextlib.asynccontextmanager
    async def _throw_away(self, kind: ForkKind, start: SavedState, stem: str) -> AsyncIterator[Machine]:
        """Yield a fork for the time of the block. No user sees the fork."""
        name = f"{stem}-{new_machine_id()}"
        # The forks of a project keep their identities. Other snapshots are also forked with new ones.
        identity: Identity = kind.identity if kind.manifest.part_of is not None else "new"
        order = ForkOrder(
            kind.manifest, start, identity, name=name, ephemeral=True, spec=kind.spec, standby=True
        )
        machine = await self._maker.make(order)
        try:
            yield machine
        finally:
            await finish(self._lifetimes.delete_standby(machine))

    async def _exercise(self, machine: Machine, urgency: Urgency) -> None:
        """Let a throw-away fork do what forks do first."""
        began = time.monotonic()
        self._lifetimes.pin(machine)
        urgency.listen(lambda: machine.stand_back(False))
        machine.stand_back(not urgency.is_set)
        await machine.wait_ready()
        channel = machine.channel()  # not agent(): that would raise the fork's priority
        assert isinstance(channel, AgentChannel)  # the image has ours
        for _ in range(_PREWARM_COMMANDS):
            await run_script(channel, "true", timeout_s=_COMMAND_S)
        await settle_identity(channel, machine.record)
        if machine.pid is not None:
            await wait_quiet(machine.pid, began=began, urgency=urgency)

    async def _check_process_image(self, kind: ForkKind) -> Plan:
        """Return the plan of a fork of that kind.

        Raises HostLacks: such forks cannot have a process image, as far as is known before.
        """
        manifest = kind.manifest
        record = self._keeper.tree.fork_record(
            manifest,
            machine_id=new_machine_id(),
            name="prewarm",
            taken_uids=(),
            identity="new",
            ephemeral=True,
            spec=kind.spec,
        )
        record.throw_away = True
        record.disks = [
            MachineDisk(file=f"{number}.qcow2", size_bytes=disk.size_bytes, layers=list(disk.layers))
            for number, disk in enumerate(manifest.disks)
        ]
        plan = await self._inventory.plan_of(record, self._inventory.home.machine(record.id))
        if fit_of(plan) is None or not manifest.image_agent:
            raise HostLacks("such machines get no process image on this host")
        barred = barring_process_image(used_settings(record.spec))
        if barred:
            raise HostLacks(f"machines with {', '.join(barred)} get no process image")
        return plan
