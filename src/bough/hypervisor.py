"""The use cases. The one place that knows machines, images, QEMU and networks, and introduces
them to each other; everything above (the service) only carries calls here."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from bough.audit.files import Look
from bough.audit.store import audit_store
from bough.audit.sweep import sweep_runtime, sweep_unfinished_writes
from bough.bundle import Source
from bough.errors import (
    AgentTimeout,
    BoughError,
    Conflict,
    GuestRefused,
    InUse,
    InvalidInput,
    MachineFailed,
    NameTaken,
    NoSpace,
    NotFound,
    WrongState,
)
from bough.guest.channel import AgentChannel
from bough.images.bootstrap import remove_build
from bough.images.build import BuildOptions, build, build_recipe
from bough.images.catalogue import Catalogue, Catalogues
from bough.images.confined import Confinement
from bough.images.download import sweep as sweep_downloads
from bough.images.imports import ImportRequest, import_image
from bough.images.layers import flatten, layer_key, layer_spec, packages_recipe, parse_packages
from bough.images.locks import has_versions, lock_image
from bough.images.pull import fetch_catalogue, pull_image
from bough.images.recipes import LABELS
from bough.images.store import ImageManifest, ImageStore, split_label
from bough.machines.autostart import start_machines
from bough.machines.disks import create_disks, disk_chain, first_disks, read_disk_usage, remove_strays
from bough.machines.events import Events
from bough.machines.first_boot import run_script
from bough.machines.identity import prepare_guest
from bough.machines.layer import make_layer
from bough.machines.machine import Machine, SavedState
from bough.machines.media import create_seed, resolve_media
from bough.machines.mounts import add_mount, describe_mounts
from bough.machines.plan import (
    check_arch,
    host_arch,
    install_firmware_variables,
    resolve_hardware,
    resolve_plan,
)
from bough.machines.record import LIVE, MachineRecord, PortForward, State, new_machine_id, now
from bough.mounts.source import resolve_mount, resolve_mounts
from bough.paths import Home, MachinePaths
from bough.progress import Progress, Report, ignore_progress
from bough.qemu.cgroup import find_groups
from bough.qemu.choice import choose_accelerator
from bough.qemu.host import read_host_facts
from bough.qemu.plan import Plan
from bough.qemu.probe import find_qemu, probe_accelerators, probe_jail
from bough.snapshots.export import Format, exported, snapshot_subject, suspended_subject
from bough.snapshots.handover import Subject
from bough.snapshots.imports import taken_up
from bough.snapshots.ready import (
    SETTLE_SCRIPT,
    SETTLE_TIMEOUT_S,
    can_be_ready,
    find_ready,
    is_neutral,
    neutral,
    ready_key,
    stale,
)
from bough.snapshots.spares import Spares
from bough.snapshots.store import SnapshotManifest
from bough.snapshots.suspend import resume, suspend, sweep_suspended
from bough.snapshots.tree import Identity, SnapshotTree
from bough.spec import (
    MachineSpec,
    PackageLock,
    RecipeSpec,
    check_against_host,
    check_name,
    parse_architecture,
    parse_mount,
    parse_recipe,
    parse_spec,
)
from bough.storage import sync_directory, sync_file

log = logging.getLogger("bough.hypervisor")

#: How long an ephemeral machine is kept while nobody holds it: for the client to come back after a
#: restart of the service.
EPHEMERAL_GRACE_S = 30.0
_EXPIRE_AGAIN_S = 1.0
_SEE_OFF_S = 10.0
#: More of them at once only wait for each other.
_FORKS_AT_ONCE = max(2, os.cpu_count() or 2)


class Hypervisor:
    """Everything of one BOUGH_HOME. Create, `open()`, use, `close()`."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.events = Events()
        self.images = ImageStore(home)
        self.catalogues = Catalogues(home)
        self.snapshots = SnapshotTree(home)
        self._machines: dict[str, Machine] = {}
        self._reserved_names: set[str] = set()
        self._creating: dict[str, int] = {}
        self._holders: dict[str, int] = {}
        #: Ephemeral ones whose client is done with them.
        self._leaving: set[str] = set()
        self._all_left = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._unreadable: dict[str, str] = {}
        self._making = 0
        self._making_ready: dict[str, asyncio.Lock] = {}
        self.spares = Spares(home.spares, self._make_spare, self._discard_spare)

    async def open(self) -> None:
        """Sweep what is half-made, read every record, take up every machine that runs."""
        self.home.create()
        self.snapshots.store.open()
        for stray in self.home.incoming.iterdir():
            await asyncio.to_thread(remove_build if stray.is_dir() else _remove_tree, stray)
        sweep_unfinished_writes(self.home)
        sweep_runtime(self.home)
        for root in sorted(self.home.machines.iterdir()):
            paths = self.home.machine(root.name)
            if paths.record.exists() and not paths.record.stat().st_size:
                # An ephemeral one, which is not synced: a power cut took what was written.
                await asyncio.to_thread(_remove_tree, root)
                continue
            try:
                record = MachineRecord.read(paths)
            except (OSError, ValueError) as error:
                # One that is damaged must not keep the others from being used.
                log.error("the record of machine %s cannot be read: %s", root.name, error)
                self._unreadable[root.name] = str(error)
                self.snapshots.store.keep_all(root.name)
            else:
                if not record.disks:  # of a bough that knew no snapshots
                    image_bytes = self.images.resolve(record.image_digest).size_bytes
                    record.disks = first_disks(record, self.home, image_bytes)
                self._machines[record.id] = self._machine_of(record, paths)
        async with asyncio.TaskGroup() as group:
            for machine in self._machines.values():
                group.create_task(machine.adopt())
        for machine in self._machines.values():
            remove_strays(machine.paths, machine.record)
            sweep_suspended(machine.paths, machine.record)
        self.snapshots.settle()
        self._drop_ready(stale(self.snapshots.store, self._image_digests()))
        self._collect()
        for machine in self._machines.values():
            if machine.record.ephemeral:
                self._expire_unless_held(machine.id)
        self._own(start_machines(self.machines(), self.events), "autostart")
        self.spares.open()

    async def close(self) -> None:
        """Let go of the machines; they run on."""
        await self.spares.close()
        for task in list(self._tasks):
            task.cancel()
        await self.snapshots.close()
        await asyncio.gather(*(machine.let_go() for machine in self._machines.values()))

    # -- machines -----------------------------------------------------------------------------

    def machines(self) -> list[Machine]:
        shown = (machine for machine in self._present() if not machine.record.spare)
        return sorted(shown, key=lambda machine: machine.record.created)

    def _present(self) -> list[Machine]:
        """All that are not on their way out."""
        return [machine for machine in self._machines.values() if machine.id not in self._leaving]

    def machine(self, reference: str) -> Machine:
        """By name, id, or a prefix of an id that only one has (4 or more digits)."""
        present = self._present()
        for machine in present:
            if reference in (machine.name, machine.id):
                return machine
        if reference in self._unreadable:
            raise Conflict(
                f"the record of machine {reference} cannot be read: {self._unreadable[reference][:300]}",
                hint="bough doctor --store tells what is safe to do",
                machine=reference,
            )
        found = [m for m in present if len(reference) >= 4 and m.id.startswith(reference)]
        if len(found) == 1:
            return found[0]
        if found:
            raise Conflict(f"{reference!r} is the beginning of {len(found)} machines' ids", hint="give more")
        names = [machine.name for machine in present]
        close = get_close_matches(reference, names, n=1)
        hint = f"did you mean '{close[0]}'?" if close else "bough list shows them all"
        raise NotFound(
            f"no machine is called {reference[:80]!r}", hint=hint, kind="machine", name=reference[:80]
        )

    async def create(
        self,
        data: dict[str, Any],
        *,
        name: str | None = None,
        force: bool = False,
        ephemeral: bool = False,
        report: Report = ignore_progress,
    ) -> Machine:
        """A stopped machine from a spec; its image is built first when it is not here.

        Cancelling, or any error, leaves nothing behind.

        Raises:
            InvalidSpec, BeyondHost, NameTaken, NotFound (the image), BuildFailed, NoSpace, HostLacks
        """
        spec = resolve_mounts(parse_spec(data), self._hidden)
        facts = await read_host_facts(self.home)
        check_against_host(spec, facts, force=force)
        # Told before an image is built for minutes.
        check_arch(spec.arch or split_label(spec.image)[1] or facts.arch)
        with self._reserve(name or self._free_name(spec.image)) as reserved, self._half_made():
            image = await self.image(spec.image, spec.arch, report)
            with self._using(image.digest):
                machine = await self._create(spec, reserved, image, ephemeral, report)
        self.events.emit("created", machine=machine.id, name=machine.name)
        if ephemeral:
            self._expire_unless_held(machine.id)
        return machine

    async def _create(
        self, spec: MachineSpec, name: str, image: ImageManifest, ephemeral: bool, report: Report
    ) -> Machine:
        if spec.mounts and not (image.agent or image.cloud_init):
            raise InvalidInput(
                f"{spec.image} has no agent of bough's, without which no directory is shared",
                hint="copy files into its disk, or share them over its network",
            )
        report(Progress("creating the machine"))
        machine_id = new_machine_id()
        hardware = await resolve_hardware(
            spec, image, self.home, machine_id=machine_id, taken_uids=self._taken_uids()
        )
        record = MachineRecord(
            id=machine_id,
            name=name,
            spec=spec,
            image_digest=image.digest,
            image_agent=image.agent or image.cloud_init,
            hardware=hardware,
            created=now(),
            ephemeral=ephemeral,
            ports=[PortForward(**port.model_dump()) for port in spec.ports],
            media=resolve_media(spec, image, self.images.resolve),
        )
        made = MachinePaths(self.home.incoming / record.id, self.home.runtime / record.id)
        paths = self.home.machine(record.id)
        try:
            for directory in (made.root, made.disks, made.log):
                directory.mkdir(mode=0o711)
            record.disks = await create_disks(made, record, image, self.home)
            install_firmware_variables(hardware, made.disks)
            if record.media.seed:
                await asyncio.to_thread(create_seed, made.disks, record)
            record.write(made)
            made.root.rename(paths.root)
        except BaseException:
            _remove_tree(made.root)
            raise
        sync_directory(self.home.machines)
        machine = self._machine_of(record, paths)
        self._machines[record.id] = machine
        return machine

    async def run(
        self,
        data: dict[str, Any],
        *,
        name: str | None = None,
        force: bool = False,
        ephemeral: bool = False,
        cold: bool = False,
        timeout_s: float = 120,
        report: Report = ignore_progress,
    ) -> Machine:
        """A new machine that has answered: gone on from a kept snapshot of the booted image where its
        spec allows that (see snapshots/ready.py), booted otherwise.

        Args:
            cold: boot it in any case.

        Raises:
            As `create`: nothing was made. MachineFailed, AgentTimeout, GuestRefused: it did not come up; it
            stays unless it is ephemeral.
        """
        spec = resolve_mounts(parse_spec(data), self._hidden)
        check_against_host(spec, await read_host_facts(self.home), force=force)
        if name is not None:
            with self._reserve(name):
                pass  # told before an image is booted
        manifest = None if cold else await self._ready_snapshot(spec, report)
        machine = None
        try:
            if manifest is not None and name is None and is_neutral(spec):
                machine = await self._take_spare(manifest, spec, ephemeral)
            if manifest is not None and machine is None:
                machine = await self._run_from(manifest, spec, name, ephemeral, report)
            if machine is None:
                machine = await self.create(data, name=name, force=force, ephemeral=ephemeral, report=report)
            with self.hold(machine, grace_s=EPHEMERAL_GRACE_S):
                if machine.state is State.STOPPED:
                    await machine.start(report)
                await machine.wait_ready(timeout_s=timeout_s, report=report)
            return machine
        except BaseException:
            if ephemeral and machine is not None:
                self._expire_unless_held(machine.id, grace_s=0)
            raise

    async def _run_from(
        self,
        manifest: SnapshotManifest,
        spec: MachineSpec,
        name: str | None,
        ephemeral: bool,
        report: Report,
        *,
        spare: bool = False,
    ) -> Machine | None:
        """None: the snapshot is of no use, and was removed."""
        report(Progress("starting from the booted image"))
        try:
            with self.snapshots.using(manifest):
                saved = await self.snapshots.saved_state(manifest)
                return await self._fork(manifest, name, saved, "new", ephemeral, spec=spec, spare=spare)
        except MachineFailed as error:
            log.warning("cannot go on from the booted image %s: %s", manifest.id, error)
            self.snapshots.delete(manifest, self._records())
            return None

    def want_spares(self, data: dict[str, Any], count: int) -> None:
        """Raises InvalidSpec for a spec that cannot stand by."""
        if count and not is_neutral(parse_spec(data)):
            raise InvalidInput(
                "a spare has no host name, users, files, commands, ports, limits or mounts of its own",
                hint="leave those out; a run that asks for them takes no spare",
            )
        self.spares.want(data, count)

    async def _make_spare(self, data: dict[str, Any]) -> tuple[str, Machine]:
        """It has answered and settled, has run a command, and stands still."""
        spec = parse_spec(data)
        manifest = await self._ready_snapshot(spec, ignore_progress)
        if manifest is None or manifest.ready_key is None:
            raise InvalidInput(
                f"machines of {spec.image} with these settings boot each time, and have no spares"
            )
        machine = await self._run_from(manifest, spec, None, True, ignore_progress, spare=True)
        if machine is None:
            raise MachineFailed("what is kept of the booted image is damaged; it is made anew")
        self._holders[machine.id] = 1
        try:
            await machine.wait_ready()
            channel = await machine.agent()
            for _ in range(3):
                await run_script(channel, "true", timeout_s=60)
            await machine.wait_settled()
            await run_script(channel, "true", timeout_s=60)
            if isinstance(channel, AgentChannel):
                await prepare_guest(channel)
            await machine.pause()
        except BaseException:
            await asyncio.shield(self._discard_spare(machine))
            raise
        return manifest.ready_key, machine

    async def _take_spare(
        self, manifest: SnapshotManifest, spec: MachineSpec, ephemeral: bool
    ) -> Machine | None:
        machine = self.spares.take(manifest.ready_key or "")
        if machine is None:
            return None
        try:
            await machine.wake_spare(spec, ephemeral=ephemeral)
        except BoughError as error:
            log.warning("a spare was of no use: %s", error)
            self._own(self._discard_spare(machine), "discard a spare")
            return None
        self._holders.pop(machine.id, None)
        if not ephemeral:
            await asyncio.to_thread(_sync_machine, machine)
        self.events.emit("created", machine=machine.id, name=machine.name)
        return machine

    async def _discard_spare(self, machine: Machine) -> None:
        self._holders.pop(machine.id, None)
        with contextlib.suppress(BoughError):
            await self.delete(machine, force=True)

    async def _ready_snapshot(self, spec: MachineSpec, report: Report) -> SnapshotManifest | None:
        """Of the booted image on that hardware, made where there is none; None: this one is booted."""
        check_arch(spec.arch or split_label(spec.image)[1] or host_arch())
        image = await self.image(spec.image, spec.arch, report)
        if not can_be_ready(spec, image):
            return None
        qemu = find_qemu(image.arch)
        hardware = await resolve_hardware(spec, image, self.home, machine_id="ready", taken_uids=())
        jail = await probe_jail(qemu, self.home)
        accelerator = choose_accelerator(spec.accelerator, await probe_accelerators(qemu, jail, self.home))
        key = ready_key(spec, image, hardware, accelerator.name, qemu.version)
        async with self._making_ready.setdefault(key, asyncio.Lock()):
            found = find_ready(self.snapshots.store, key)
            if found is not None:
                return found
            try:
                return await self._make_ready(neutral(spec, image), image, key, report)
            except (MachineFailed, NoSpace, AgentTimeout, GuestRefused, TimeoutError) as error:
                log.warning("no snapshot of the booted %s could be kept: %s", spec.image, error)
                return None

    async def _make_ready(
        self, spec: MachineSpec, image: ImageManifest, key: str, report: Report
    ) -> SnapshotManifest:
        report(Progress("booting the image, once for all later runs"))
        with self._reserve(f"boot-{key[:12]}") as name, self._half_made(), self._using(image.digest):
            machine = await self._create(spec, name, image, True, report)
        try:
            with self.hold(machine):
                await machine.start(report)
                await machine.wait_ready(report=report)
                report(Progress("waiting until it is up"))
                await run_script(await machine.agent(), SETTLE_SCRIPT, timeout_s=SETTLE_TIMEOUT_S)
                manifest = await self._take(machine, ready_key=key, report=report)
        finally:
            with contextlib.suppress(BoughError):
                await asyncio.shield(self.delete(machine, force=True))
        self._drop_ready(stale(self.snapshots.store, self._image_digests()))
        return manifest

    def _drop_ready(self, manifests: Iterable[SnapshotManifest]) -> None:
        for manifest in manifests:
            self.snapshots.delete(manifest, self._records())

    def _image_digests(self) -> list[str]:
        return [entry.manifest.digest for entry in self.images.entries()]

    def _machine_of(self, record: MachineRecord, paths: MachinePaths) -> Machine:
        return Machine(record, paths, self.events, self._plan, self._collect)

    def _collect(self) -> None:
        """Remove layers that nothing stands on any more."""
        self.snapshots.collect(self._records())

    async def _plan(self, record: MachineRecord, paths: MachinePaths) -> Plan:
        return await resolve_plan(record, paths, self.home)

    async def plan(self, machine: Machine) -> Plan:
        """What `start` would start, as data."""
        return await self._plan(machine.record, machine.paths)

    async def start(self, machine: Machine, *, cold: bool = False, report: Report = ignore_progress) -> None:
        """Until its vCPUs run; a suspended one goes on, unless `cold` gives its memory up."""
        if machine.state is not State.SUSPENDED:
            await machine.start(report)
        elif cold:
            with machine.claim("starting"):
                await machine.stop(force=True)
                await machine.start(report)
        else:
            await resume(machine, report)

    async def suspend(self, machine: Machine, *, report: Report = ignore_progress) -> None:
        """See snapshots/suspend.py."""
        with self._half_made():
            await suspend(machine, self.home, report)

    async def resume(self, machine: Machine, *, report: Report = ignore_progress) -> None:
        """A paused or suspended machine goes on."""
        if machine.state is State.SUSPENDED:
            await resume(machine, report)
        else:
            await machine.resume()

    async def restart(
        self, machine: Machine, *, deadline_s: float = 60, report: Report = ignore_progress
    ) -> None:
        """Stop and start: the guest sees the power go and come back. Goes on when the caller is cancelled."""

        async def work() -> None:
            with machine.claim("being restarted"):
                await machine.stop(deadline_s=deadline_s, report=report)
                await machine.start(report)

        await asyncio.shield(machine.own(work(), "restart"))

    def rename(self, machine: Machine, name: str) -> None:
        if name == machine.name:
            return
        with self._reserve(name):
            machine.rename(name)

    async def delete(self, machine: Machine, *, force: bool = False) -> None:
        """Its disks too. A running one only with `force`, which pulls its plug.

        Raises:
            WrongState: it runs and `force` was not given.
        """
        with machine.claim("being deleted"):
            if machine.state in LIVE:
                if not force:
                    raise WrongState(
                        f"machine '{machine.name}' is {machine.state} and is not deleted while it is",
                        hint=f"bough stop {machine.name}, or delete it with --force",
                        machine=machine.name,
                        state=str(machine.state),
                    )
                with contextlib.suppress(WrongState):  # it ended by itself meanwhile
                    await machine.stop(force=True, flush=False)
            states = (State.STOPPED, State.FAILED, State.SUSPENDED)
            async with machine.transition("being deleted", *states):
                await self._bury(machine)

    def discard(self, machine: Machine) -> None:
        """As `delete` with force, of an ephemeral machine that nobody wants any more: it is shown no longer,
        and goes without anybody waiting for it."""
        if not machine.record.ephemeral:
            raise Conflict(f"machine '{machine.name}' is kept", hint=f"bough delete {machine.name}")
        if machine.id not in self._machines:
            return
        self._leaving.add(machine.id)
        self._all_left.clear()
        self._expire_unless_held(machine.id, grace_s=0)

    def _left(self, machine_id: str) -> None:
        self._leaving.discard(machine_id)
        if not self._leaving:
            self._all_left.set()

    async def _see_off(self) -> None:
        """Until the machines that were discarded are gone: whoever did it takes them for gone."""
        if self._leaving:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._all_left.wait(), _SEE_OFF_S)

    async def _bury(self, machine: Machine) -> None:
        machine.cancel_restart()
        with self._half_made():
            grave = self.home.incoming / f"{machine.id}.deleted"
            machine.paths.root.rename(grave)
            if not machine.record.ephemeral:
                sync_directory(self.home.machines)
            del self._machines[machine.id]
            machine.bury()
            self.events.emit("deleted", machine=machine.id, name=machine.name)
            await asyncio.to_thread(_remove_tree, grave)
            await asyncio.to_thread(_remove_tree, machine.paths.runtime)
            self._collect()
        self._left(machine.id)

    # -- snapshots and forks --------------------------------------------------------------------

    async def snapshot(
        self,
        machine: Machine,
        *,
        label: str | None = None,
        message: str = "",
        memory: bool = True,
        report: Report = ignore_progress,
    ) -> SnapshotManifest:
        """See SnapshotTree.take."""
        if label is not None:
            check_name(label)
        manifest = await self._take(machine, label=label, message=message, memory=memory, report=report)
        self.events.emit("snapshotted", machine=machine.id, name=machine.name, detail=manifest.id)
        return manifest

    async def _take(self, machine: Machine, **options: Any) -> SnapshotManifest:
        try:
            return await self.snapshots.take(machine, **options)
        except BaseException:
            self._collect()  # what is there of it, and nothing stands on
            raise

    def delete_snapshot(self, reference: str) -> None:
        self.snapshots.delete(self.snapshots.store.resolve(reference), self._records())

    async def restore(
        self, machine: Machine, reference: str, *, keep: bool = False, report: Report = ignore_progress
    ) -> None:
        """Put a machine back in place; running again where the snapshot has memory. Goes on when the
        caller is cancelled.

        Args:
            keep: snapshot it first, as it is.
        """
        manifest = self.snapshots.store.resolve(reference)
        self.snapshots.check_own(machine, manifest)

        async def work() -> None:
            with machine.claim("being restored"), self.snapshots.using(manifest):
                saved = await self.snapshots.saved_state(manifest)
                if keep:
                    message = f"before a restore to {manifest.id}"
                    await self.snapshot(machine, message=message, report=report)
                if machine.state in LIVE or machine.state is State.SUSPENDED:
                    await machine.stop(force=True)
                report(Progress("restoring"))
                await self.snapshots.put_back(machine, manifest)
                if saved is not None:
                    await machine.start(report, saved=saved)

        try:
            await asyncio.shield(machine.own(work(), "restore"))
        finally:
            self._collect()
        if machine.state is State.RUNNING:
            await machine.wait_ready(report=report)
        self.events.emit("restored", machine=machine.id, name=machine.name, detail=manifest.id)

    async def fork(
        self,
        reference: str,
        names: list[str | None],
        *,
        identity: Identity = "new",
        cold: bool = False,
        ephemeral: bool = False,
        wait: bool = True,
        timeout_s: float = 120,
        report: Report = ignore_progress,
    ) -> list[Machine | BoughError]:
        """New machines from a machine, running or not, or from a snapshot; one for each of `names`.

        Each works or fails by itself. From what runs they run, and have answered, unless `cold`.

        Args:
            names: None chooses one.
            cold: from the disks alone; they are stopped.

        Raises:
            NotFound, WrongState, ...: the source cannot be forked; nothing was made.
        """
        source = self._find_machine(reference)
        if source is None:
            manifest = self.snapshots.store.resolve(reference)
        else:
            manifest = await self._take(source, memory=not cold, keep=False, report=report)
        report(Progress("forking"))
        try:
            with self.snapshots.using(manifest), contextlib.ExitStack() as holds:
                saved = None if cold else await self.snapshots.saved_state(manifest)
                limit = asyncio.Semaphore(_FORKS_AT_ONCE)

                async def one(name: str | None) -> Machine | BoughError:
                    async with limit:
                        try:
                            machine = await self._fork(manifest, name, saved, identity, ephemeral)
                            # Its client holds it when it knows of it: when all of them are made.
                            holds.enter_context(self.hold(machine, grace_s=EPHEMERAL_GRACE_S))
                            if saved is not None and wait:
                                await machine.wait_ready(timeout_s=timeout_s)
                                # What its new name wakes in it can wait until the others have answered.
                                machine.stand_back()
                                holds.callback(machine.stand_back, False)
                            return machine
                        except BoughError as error:
                            return error

                return list(await asyncio.gather(*(one(name) for name in names)))
        finally:
            if source is not None:
                self.snapshots.forget(manifest)
            self._collect()

    async def _fork(
        self,
        manifest: SnapshotManifest,
        name: str | None,
        saved: SavedState | None,
        identity: Identity,
        ephemeral: bool,
        *,
        spec: MachineSpec | None = None,
        spare: bool = False,
    ) -> Machine:
        stem = spec.image if spec is not None else manifest.machine_name
        with self._reserve(name or self._free_name(stem)) as reserved:
            machine_id = new_machine_id()
            record = self.snapshots.fork_record(
                manifest,
                machine_id=machine_id,
                name=reserved,
                taken_uids=self._taken_uids(),
                identity=identity,
                ephemeral=ephemeral,
                spec=spec,
            )
            record.spare = spare
            made = MachinePaths(self.home.incoming / machine_id, self.home.runtime / machine_id)
            paths = self.home.machine(machine_id)
            try:
                await asyncio.to_thread(self.snapshots.make_files, record, manifest, made)
                made.root.rename(paths.root)
            except BaseException:
                _remove_tree(made.root)
                raise
            if not ephemeral:
                sync_directory(self.home.machines)
            machine = self._machine_of(record, paths)
            self._machines[machine_id] = machine
        how = ("forked", f"from {manifest.id}") if spec is None else ("created", "")
        if not spare:
            self.events.emit(how[0], machine=machine.id, name=machine.name, detail=how[1])
        if ephemeral:
            self._expire_unless_held(machine.id)
        if saved is not None:
            try:
                await machine.start(saved=saved)
            except BaseException:
                self._expire_unless_held(machine.id, grace_s=0)
                with contextlib.suppress(BoughError):
                    await self.delete(machine, force=True)
                raise
        return machine

    # -- bundles --------------------------------------------------------------------------------

    @asynccontextmanager
    async def subject(self, reference: str, *, disks_only: bool, report: Report) -> AsyncIterator[Subject]:
        """What `reference`, a machine or a snapshot, is just now; it is kept until the block ends."""
        source = self._find_machine(reference)
        if source is not None and source.state is State.SUSPENDED:
            async with source.transition("being exported", State.SUSPENDED):
                yield await suspended_subject(source, self.home, disks_only=disks_only)
            return
        if source is None:
            manifest = self.snapshots.store.resolve(reference)
        else:
            manifest = await self._take(source, memory=not disks_only, keep=False, report=report)
        try:
            with self.snapshots.using(manifest):
                saved = None if disks_only else await self.snapshots.saved_state(manifest)
                accelerator = source.record.accelerator if source else None
                if manifest.memory is not None:
                    accelerator = manifest.memory.accelerator
                yield snapshot_subject(manifest, self.snapshots.store, saved, accelerator)
        finally:
            if source is not None:
                self.snapshots.forget(manifest)
            self._collect()

    @asynccontextmanager
    async def export(
        self, reference: str, *, format: Format, disks_only: bool, thin: bool, report: Report
    ) -> AsyncIterator[Iterator[bytes]]:
        """What is to be written, in pieces, by a thread. See snapshots/export.py."""
        with self._half_made():
            async with (
                self.subject(reference, disks_only=disks_only or format != "bough", report=report) as subject,
                exported(subject, self.images, format=format, thin=thin, report=report) as pieces,
            ):
                yield pieces

    async def import_bundle(
        self,
        source: Source,
        *,
        name: str | None,
        identity: Identity,
        cold: bool,
        report: Report,
    ) -> Machine:
        """The machine that is in a bundle; it goes on, where its memory is there.

        Raises:
            BadBundle: nothing was made. NameTaken, BeyondHost, NotFound (its image), NoSpace
        """
        with self._half_made():
            async with taken_up(source, self.images, cold=cold, report=report) as arrival:
                if name is None:
                    name = arrival.name
                with self._reserve(name):
                    pass  # told before the rest is read
                made = await arrival.read()
                self.snapshots.store.add(made, arrival.manifest)
        try:
            with self.snapshots.using(arrival.manifest):
                report(Progress("making the machine"))
                machine = await self._fork(arrival.manifest, name, arrival.saved, identity, False)
        finally:
            self._collect()
        self.events.emit("imported", machine=machine.id, name=machine.name)
        return machine

    def _find_machine(self, reference: str) -> Machine | None:
        try:
            return self.machine(reference)
        except NotFound:
            if not self.snapshots.store.knows(reference):
                raise
            return None

    def _records(self) -> list[MachineRecord]:
        return [machine.record for machine in self._machines.values()]

    @contextmanager
    def hold(self, machine: Machine, *, grace_s: float = 0) -> Iterator[None]:
        """An ephemeral machine lives while somebody is in here, and for `grace_s` after the last."""
        self._holders[machine.id] = self._holders.get(machine.id, 0) + 1
        try:
            yield
        finally:
            self._holders[machine.id] -= 1
            if not self._holders[machine.id]:
                del self._holders[machine.id]
                if machine.record.ephemeral and machine.id in self._machines:
                    self._expire_unless_held(machine.id, grace_s=grace_s)

    def _expire_unless_held(self, machine_id: str, grace_s: float = EPHEMERAL_GRACE_S) -> None:
        async def expire() -> None:
            pause_s = grace_s
            while True:
                await asyncio.sleep(pause_s)
                machine = self._machines.get(machine_id)
                if machine is None or not machine.record.ephemeral:
                    self._left(machine_id)
                    return
                if machine_id in self._holders and machine_id not in self._leaving:
                    return
                try:
                    await self.delete(machine, force=True)
                except (NotFound, Conflict):
                    pass  # it is being snapshotted, say: afterwards
                except BaseException:
                    self._left(machine_id)
                    raise
                pause_s = _EXPIRE_AGAIN_S

        self._own(expire(), f"expire {machine_id}")

    def _own(self, work: Coroutine[Any, Any, None], what: str) -> None:
        task = asyncio.create_task(work, name=what)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def describe(self, machine: Machine) -> dict[str, Any]:
        record = machine.record
        return {
            "id": record.id,
            "name": record.name,
            "state": str(record.state),
            "agent": machine.agent_state if record.state in LIVE else "none",
            "image": record.spec.image,
            "image_digest": record.image_digest,
            "created": record.created,
            "started": record.started if record.state in LIVE else None,
            "vcpus": record.spec.vcpus,
            "memory_bytes": record.spec.memory,
            "disk_bytes": read_disk_usage(machine.paths),
            "layers": machine.chains.depth,
            "ports": [forward.model_dump() for forward in record.ports],
            "mounts": describe_mounts(machine),
            "accelerator": record.accelerator,
            "hardware": record.hardware.model_dump(),
            "jail": record.jail,
            "restarts": record.restarts.model_dump(),
            "failure": record.failure.model_dump() if record.failure else None,
            "first_boot": record.first_boot.model_dump(),
            "ephemeral": record.ephemeral,
            "suspended": record.suspended.model_dump() if record.suspended else None,
            "snapshot": record.snapshot,
            "forked_from": record.forked_from,
            "pid": machine.pid,
            "vnc": str(machine.paths.vnc_socket) if machine.pid and record.media.display else None,
            "spec": record.spec.model_dump(mode="json"),
        }

    async def mount(self, machine: Machine, data: dict[str, Any]) -> None:
        """See machines.mounts.add_mount."""
        await add_mount(machine, resolve_mount(parse_mount(data), self._hidden))

    @property
    def _hidden(self) -> tuple[Path, Path]:
        """What no guest may see of the host, whatever is shared with it."""
        return self.home.root, self.home.runtime

    async def add_port(self, machine: Machine, forward: PortForward) -> PortForward:
        return await machine.add_port(forward)

    # -- images -------------------------------------------------------------------------------

    async def image(self, reference: str, arch: str | None, report: Report) -> ImageManifest:
        """From the store; built when it is a known recipe that was never built for this architecture; or as
        others publish it."""
        label, own = split_label(reference)
        arch = arch or own
        if arch is None and label in LABELS:
            arch = host_arch()
        try:
            return self.images.resolve(reference, arch)
        except NotFound:
            if label not in LABELS and self.images.knows(label):
                raise  # it is here, for another architecture
            if label not in LABELS and self.catalogues.current().knows(label):
                return await self.pull_image(label, arch=arch, report=report)
            with self._half_made():
                return await build(self.images, label, arch=arch or host_arch(), progress=report)

    async def pull_image(
        self,
        reference: str,
        *,
        arch: str | None,
        label: str | None = None,
        signed: bool = True,
        report: Report,
    ) -> ImageManifest:
        """See bough.images.pull: an image of the catalogue."""
        jail = await probe_jail(find_qemu(host_arch()), self.home)
        with self._half_made():
            return await pull_image(
                self.images,
                self.catalogues.current(),
                reference,
                parse_architecture(arch) if arch else host_arch(),
                Confinement(jail),
                report,
                label=label,
                signed=signed,
            )

    async def update_catalogue(self, source: str | None, *, force: bool, report: Report) -> Catalogue:
        """The one at `source`, or where the last one came from. Nothing changes unless all of it is right."""
        address = source or os.environ.get("BOUGH_CATALOGUE") or self.catalogues.source
        if address is None:
            raise InvalidInput(
                "no address of a catalogue is known",
                hint="--from URL, once; or BOUGH_CATALOGUE in the service's environment",
            )
        text = await fetch_catalogue(address, self.home, report)
        return self.catalogues.replace(text, address, force=force)

    async def build_image(
        self, reference: str, *, arch: str | None, how: BuildOptions, report: Report
    ) -> ImageManifest:
        reference, own = split_label(reference)
        arch = parse_architecture(arch) if arch else own or host_arch()
        with self._half_made():
            return await build(
                self.images,
                reference,
                arch=arch,
                progress=report,
                rebuild=how.rebuild,
                mirrors=how.mirrors,
                lock=how.lock,
            )

    async def build_recipe(
        self, data: dict[str, Any], *, label: str, how: BuildOptions, report: Report
    ) -> ImageManifest:
        """The image that a recipe (see bough.spec.RecipeSpec) describes, from as much as is here already.

        Raises:
            InvalidSpec, BuildFailed (with what its command printed), and as `create` and `build_image`.
        """
        recipe = parse_recipe(data)
        label = recipe.label or label
        if label in LABELS:
            raise InvalidInput(f"{label} is bough's own", hint='give it another name: label = "web"')
        lock = how.lock
        if recipe.is_debian:
            base = await build_recipe(
                self.images,
                packages_recipe(recipe, label, host_arch()),
                label=None,
                progress=report,
                mirrors=how.mirrors,
                lock=lock,
                rebuild=how.rebuild and not recipe.needs_machine,
            )
        else:
            base = await self.image(lock.base if lock and lock.base else recipe.base, None, report)
        if not recipe.needs_machine:
            self.images.label(base.digest, label)
            return base
        key = layer_key(base.digest, recipe.model_dump(mode="json", exclude={"label"}))
        known = None
        if not how.rebuild:
            known = self.images.find_recipe(key, lambda image: lock is None or has_versions(image, lock))
        if known is not None:
            self.images.label(known.digest, label)
            return known
        with self._using(base.digest):
            return await self._build_layer(recipe, base, key, label, lock, report)

    async def _build_layer(
        self,
        recipe: RecipeSpec,
        base: ImageManifest,
        key: str,
        label: str,
        lock: PackageLock | None,
        report: Report,
    ) -> ImageManifest:
        spec = layer_spec(recipe, base, lock)
        machine = await self.create(spec, name=f"build-{key[:12]}", force=True, report=report)
        try:
            disk, output = await make_layer(machine, recipe, base, label, report)
            jail = await probe_jail(find_qemu(base.arch), self.home)
            return await flatten(
                self.images,
                base,
                disk_chain(machine.record.disks[disk], machine.paths, self.home),
                recipe.size or base.size_bytes,
                key=key,
                label=label,
                packages=parse_packages(output),
                confinement=Confinement(jail),
                report=report,
            )
        finally:
            await asyncio.shield(self.delete(machine, force=True))

    def lock_image(self, reference: str) -> dict[str, Any]:
        return lock_image(self.images, self.images.resolve(reference)).model_dump(mode="json")

    async def import_image(self, request: dict[str, Any], *, report: Report) -> ImageManifest:
        """See bough.images.imports; `request` is that of the API."""
        arch = request.pop("arch")
        jail = await probe_jail(find_qemu(host_arch()), self.home)
        asked = ImportRequest(
            arch=parse_architecture(arch) if arch else host_arch(),
            arch_given=arch is not None,
            label=request.pop("name"),
            checksum=request.pop("sha256"),
            most_bytes=request.pop("max_size"),
            **request,
        )
        with self._half_made():
            return await import_image(self.images, asked, Confinement(jail), report)

    def image_users(self) -> dict[str, list[str]]:
        """digest -> names of the machines whose disks stand on it."""
        users: dict[str, list[str]] = {digest: ["(a machine being created)"] for digest in self._creating}
        for machine in self._machines.values():
            for digest in {machine.record.image_digest, *machine.record.media.digests}:
                users.setdefault(digest, []).append(machine.name)
        for digest, user in self.snapshots.store.images_in_use():
            users.setdefault(digest, []).append(user)
        return users

    def describe_images(self) -> list[dict[str, Any]]:
        users = self.image_users()
        return [
            {
                **entry.manifest.model_dump(mode="json"),
                "labels": list(entry.labels),
                "disk_bytes": entry.bytes_on_disk,
                "used_by": users.get(entry.manifest.digest, []),
            }
            for entry in self.images.entries()
        ]

    async def delete_image(self, reference: str) -> None:
        await self._see_off()
        manifest = self.images.resolve(reference)
        self._drop_ready(m for m in self.snapshots.store.ready() if m.image_digest == manifest.digest)
        used_by = self.image_users().get(manifest.digest)
        if used_by:
            raise InUse(
                f"image {reference} is used by {', '.join(used_by[:5])}",
                hint="delete those first",
                used_by=used_by,
            )
        self.images.delete(reference)

    async def prune_images(self) -> dict[str, Any]:
        await self._see_off()
        sweep_downloads(self.home.downloads, older_than_s=0)
        labelled = {entry.manifest.digest for entry in self.images.entries() if entry.labels}
        self._drop_ready(m for m in self.snapshots.store.ready() if m.image_digest not in labelled)
        deleted, freed_bytes = self.images.prune(used=set(self.image_users()))
        return {"deleted": deleted, "freed_bytes": freed_bytes}

    # -- the whole home -----------------------------------------------------------------------

    async def audit(self, *, repair: bool, report: Report) -> dict[str, Any]:
        """Whether everything on disk is as it should be; see audit/."""
        await self._see_off()
        live = {machine.id for machine in self._machines.values() if machine.state in LIVE}
        jail = await probe_jail(find_qemu(host_arch()), self.home)
        look = Look(self.home, live, making=self._making > 0, group_bases=find_groups(), jail=jail)
        return await audit_store(look, self._keep_still, repair=repair, report=report)

    @asynccontextmanager
    async def _keep_still(self, machine_id: str) -> AsyncIterator[None]:
        """The machine is not started, and not deleted, until the block ends.

        Raises:
            Conflict: it runs, or something else is done with it just now.
        """
        states = (State.STOPPED, State.FAILED, State.SUSPENDED)
        async with self.machine(machine_id).transition("being checked", *states):
            yield

    @contextmanager
    def _half_made(self) -> Iterator[None]:
        """What is in incoming/ until the block ends belongs to it."""
        self._making += 1
        try:
            yield
        finally:
            self._making -= 1

    # -- names --------------------------------------------------------------------------------

    @contextmanager
    def _reserve(self, name: str) -> Iterator[str]:
        """`name`, and nobody else's until the block ends."""
        check_name(name)
        if name in self._reserved_names or any(m.name == name for m in self._present()):
            raise NameTaken(
                f"a machine named '{name}' exists already",
                hint=f"choose another name, or delete it: bough delete {name}",
                name=name,
            )
        self._reserved_names.add(name)
        try:
            yield name
        finally:
            self._reserved_names.discard(name)

    @contextmanager
    def _using(self, digest: str) -> Iterator[None]:
        """The image is not deleted while a machine on it is being made."""
        self._creating[digest] = self._creating.get(digest, 0) + 1
        try:
            yield
        finally:
            self._creating[digest] -= 1
            if not self._creating[digest]:
                del self._creating[digest]

    def _taken_uids(self) -> set[int]:
        uids = (machine.record.hardware.uid for machine in self._machines.values())
        return {uid for uid in uids if uid is not None}

    def _free_name(self, image: str) -> str:
        stem = "".join(c if c.isalnum() else "-" for c in image.lower())[:40].strip("-") or "machine"
        taken = self._reserved_names | {machine.name for machine in self._machines.values()}
        number = 1
        while f"{stem}-{number}" in taken:
            number += 1
        return f"{stem}-{number}"


def _sync_machine(machine: Machine) -> None:
    """One that was ephemeral is to survive a power cut from now on."""
    for path in (*machine.paths.disks.iterdir(), machine.paths.record):
        sync_file(path)
    for directory in (machine.paths.disks, machine.paths.root, machine.paths.root.parent):
        sync_directory(directory)


def _remove_tree(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        # A jailed QEMU's user may own what is inside; the directories are ours.
        shutil.rmtree(path, ignore_errors=False, onerror=_make_removable)
    else:
        path.unlink(missing_ok=True)


def _make_removable(function: Any, path: str, error: Any) -> None:
    if isinstance(error[1], FileNotFoundError):
        return
    Path(path).parent.chmod(0o700)
    function(path)
