"""What is prepared before a user asks: standby machines, forks begun in advance, pre-warms."""

from __future__ import annotations

import asyncio
import os
import time

from bough.errors import HostLacks, InvalidInput, MachineFailed, NotFound
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
from bough.machines.rehearsal import Hurry, rehearse, wait_quiet
from bough.machines.saved import SavedState
from bough.progress import ignore_progress
from bough.qemu.frozen.freeze import HOST as FROZEN_HOST
from bough.qemu.frozen.freeze import FrozenProcess
from bough.qemu.frozen.likeness import likeness_of
from bough.snapshots.ahead import Begun
from bough.snapshots.kind import Kind
from bough.snapshots.spares import Of
from bough.snapshots.store import SnapshotManifest
from bough.spec import parse_spec
from bough.spec.model import used_settings
from bough.spec.table import barring_process_image

#: A pre-warmed fork runs that many commands before its process is captured.
_PREWARM_COMMANDS = 3
_STANDBY_COMMANDS = 3
_COMMAND_S = 60.0
#: How often a standby machine is woken before a user takes it, and its pause before each time.
_WAKE_COUNT = 2
_PAUSE_S = 0.2


class Preparation:
    def __init__(
        self,
        inventory: Inventory,
        lifetimes: Lifetimes,
        keeper: SnapshotKeeper,
        booted: BootedSnapshots,
        maker: ForkMaker,
    ) -> None:
        self._inventory = inventory
        self._lifetimes = lifetimes
        self._keeper = keeper
        self._booted = booted
        self._maker = maker

    # -- standby machines (snapshots/spares.py) ---------------------------------------------------

    async def make_standby(self, of: Of) -> Machine:
        """Return a standby machine of a spec or a snapshot.

        Raises:
            BoughError: it could not be made; nothing is left.
        """
        if "snapshot" in of:
            manifest, spec = self._keeper.tree.store.resolve(of["snapshot"]), None
        else:
            spec = parse_spec(of["spec"])
            booted = await self._booted.find(spec, ignore_progress)
            if booted is None:
                raise InvalidInput(f"machines of {spec.image} with these settings always boot: none stand by")
            manifest = booted
        with self._keeper.tree.using(manifest):
            saved = await self._keeper.tree.saved_state(manifest)
            order = ForkOrder(manifest, saved, ephemeral=True, spec=spec, standby=True)
            try:
                machine = await self._maker.make(order)
            except MachineFailed:
                if spec is not None:  # damaged: the next attempt boots the image again
                    self._keeper.drop(manifest)
                raise
        return await self._settle_standby(machine)

    async def _settle_standby(self, machine: Machine) -> Machine:
        """Wait until it has answered and settled; run commands; wake it; leave it paused."""
        self._lifetimes.pin(machine)
        try:
            await machine.wait_ready()
            channel = await machine.agent()
            for _ in range(_STANDBY_COMMANDS):
                await run_script(channel, "true", timeout_s=_COMMAND_S)
            await machine.wait_settled()
            await run_script(channel, "true", timeout_s=_COMMAND_S)
            if isinstance(channel, AgentChannel):
                await prepare_guest(channel)
            await machine.pause()
            for _ in range(_WAKE_COUNT):
                await asyncio.sleep(_PAUSE_S)
                await machine.standby.rehearse()
        except BaseException:
            await asyncio.shield(self._lifetimes.delete_standby(machine))
            raise
        return machine

    async def rouse_standby(self, of: Of, machine: Machine) -> None:
        """Let the next standby machine of a spec run idle. Raises BoughError: it cannot be used."""
        if "spec" in of:
            await machine.standby.rouse()

    # -- forks begun in advance (snapshots/ahead.py) ----------------------------------------------

    async def begin_fork(self, kind: Kind) -> Begun:
        """Return a fork whose QEMU has loaded the state. Raises BoughError, OSError."""
        with self._keeper.used_in_background(kind.manifest):
            saved = await self._saved_state(kind.manifest)
            order = ForkOrder(
                kind.manifest, saved, kind.identity, ephemeral=True, spec=kind.spec, standby=True, hold=True
            )
            machine = await self._maker.make(order)
        self._lifetimes.pin(machine)
        return Begun(kind, machine, saved)

    async def _saved_state(self, manifest: SnapshotManifest) -> SavedState:
        """The state of a snapshot that may still be being written. Raises NotFound."""
        store, tree = self._keeper.tree.store, self._keeper.tree
        saved = await tree.saved_state(store.get(manifest.id)) if store.has(manifest.id) else None
        if saved is None:
            raise NotFound(f"the memory of snapshot {manifest.id} is gone")
        return saved

    # -- pre-warms (snapshots/prewarm.py, machines/rehearsal.py) ----------------------------------

    async def prewarm(self, kind: Kind, hurry: Hurry) -> FrozenProcess:
        """Return a process image from which forks of the snapshot continue.

        Raises:
            BoughError, OSError: forks of the snapshot start QEMU.
        """
        with self._keeper.used_in_background(kind.manifest):
            await self._check_process_image(kind)
            saved = await self._saved_state(kind.manifest)
            devices, rehearsal = rehearse(saved.devices, hurry)
            start = SavedState(saved.memory, devices, rehearsal=rehearsal)
            name = f"rehearsal-{new_machine_id()}"
            order = ForkOrder(kind.manifest, start, name=name, ephemeral=True, spec=kind.spec, standby=True)
            machine = await self._maker.make(order)
            try:
                await self._exercise(machine, hurry)
                overlays = await asyncio.to_thread(self._keeper.tree.fresh_overlays, kind.manifest, machine)
                return await machine.freeze(rehearsal, overlays, saved.memory)
            finally:
                await asyncio.shield(self._lifetimes.delete_standby(machine))

    async def _exercise(self, machine: Machine, hurry: Hurry) -> None:
        """Let a throw-away fork do what forks do first."""
        began = time.monotonic()
        self._lifetimes.pin(machine)
        hurry.listen(lambda: machine.stand_back(False))
        machine.stand_back(not hurry.is_set)
        await machine.wait_ready()
        channel = machine.channel()  # not agent(): that would raise the fork's priority
        assert isinstance(channel, AgentChannel)  # the image has ours
        for _ in range(_PREWARM_COMMANDS):
            await run_script(channel, "true", timeout_s=_COMMAND_S)
        await settle_identity(channel, machine.record)
        if machine.pid is not None:
            await wait_quiet(machine.pid, began=began, hurry=hurry)

    async def _check_process_image(self, kind: Kind) -> None:
        """Raise HostLacks if forks of that kind cannot have a process image, as far as is known before."""
        manifest = kind.manifest
        record = self._keeper.tree.fork_record(
            manifest,
            machine_id=new_machine_id(),
            name="rehearsal",
            taken_uids=(),
            identity="new",
            ephemeral=True,
            spec=kind.spec,
        )
        record.disks = [
            MachineDisk(file=f"{number}.qcow2", size_bytes=disk.size_bytes, layers=list(disk.layers))
            for number, disk in enumerate(manifest.disks)
        ]
        plan = await self._inventory.plan_of(record, self._inventory.home.machine(record.id))
        if os.uname().machine != FROZEN_HOST or likeness_of(plan) is None or not manifest.image_agent:
            raise HostLacks("such machines get no process image on this host")
        barred = barring_process_image(used_settings(record.spec))
        if barred:
            raise HostLacks(f"machines with {', '.join(barred)} get no process image")
