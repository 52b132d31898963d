"""Branches of machines: snapshots, restores, forks, bundles."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from bough.bundle import Source
from bough.errors import BoughError, HostLacks, InvalidInput, NotFound
from bough.guest.channel import AgentChannel
from bough.hypervisor.base import EPHEMERAL_GRACE_S, remove_tree
from bough.hypervisor.making import Making
from bough.machines.booted import wait_boot_end
from bough.machines.first_boot import run_script
from bough.machines.identity import settle_identity
from bough.machines.machine import Machine
from bough.machines.record import LIVE, MachineDisk, State, new_machine_id
from bough.machines.rehearsal import Hurry, rehearse, wait_quiet
from bough.machines.saved import SavedState
from bough.paths import MachinePaths
from bough.progress import Progress, Report, ignore_progress
from bough.qemu.frozen.freeze import HOST as FROZEN_HOST
from bough.qemu.frozen.freeze import FrozenProcess
from bough.qemu.frozen.likeness import likeness_of
from bough.snapshots.ahead import Begun
from bough.snapshots.export import Format, exported, snapshot_subject, suspended_subject
from bough.snapshots.handover import Subject
from bough.snapshots.imports import taken_up
from bough.snapshots.kind import Kind
from bough.snapshots.store import SnapshotManifest
from bough.snapshots.tree import Identity
from bough.spec import MachineSpec, check_name
from bough.spec.model import used_settings
from bough.spec.table import barring_process_image
from bough.storage import sync_directory, sync_file
from bough.tasks import finish

log = logging.getLogger("bough.hypervisor")

#: More of them at once only wait for each other.
_FORKS_AT_ONCE = max(2, os.cpu_count() or 2)
#: For so many of one call the rehearsal, which they wait for, is made up for.
_MANY = 16
#: What a fork is asked to do before it is frozen.
_REHEARSED_COMMANDS = 3
_REHEARSED_COMMAND_S = 60.0


class Branches(Making):
    async def snapshot(
        self,
        machine: Machine,
        *,
        label: str | None = None,
        message: str = "",
        memory: bool = True,
        now: bool = False,
        report: Report = ignore_progress,
    ) -> SnapshotManifest:
        """See SnapshotTree.take. Of a guest that is still booting it waits for the end, unless `now`."""
        if memory and not now:
            await wait_boot_end(machine, report)
        if label is not None:
            check_name(label)
        begun: list[str] = []

        def captured(manifest: SnapshotManifest) -> None:
            begun.append(manifest.id)
            self.ahead.foresee(Kind(manifest, "new"))

        options = {"label": label, "message": message, "memory": memory}
        try:
            manifest = await self._take(machine, captured=captured, report=report, **options)
        except Exception:  # not for a caller who went away: it is taken all the same
            for snapshot_id in begun:
                self.ahead.forget(snapshot_id)
            raise
        if manifest.memory is not None:
            self.ahead.offer(Kind(manifest, "new"))
        self.events.emit("snapshotted", machine=machine.id, name=machine.name, detail=manifest.id)
        return manifest

    async def _take(self, machine: Machine, **options: Any) -> SnapshotManifest:
        try:
            return await self.snapshots.take(machine, **options)
        except BaseException:
            self._collect()  # what is there of it, and nothing stands on
            raise

    def delete_snapshot(self, reference: str) -> None:
        manifest = self.snapshots.store.resolve(reference)
        self.spares.want({"snapshot": manifest.id}, 0)
        self._delete_snapshot(manifest)

    def want_fork_spares(self, reference: str, count: int) -> None:
        """For forks of that snapshot. Raises NotFound, InvalidInput for one whose forks cannot stand by."""
        manifest = self.snapshots.store.resolve(reference)
        if count and (manifest.memory is None or not manifest.image_agent):
            lacks = "memory" if manifest.memory is None else "our agent"
            raise InvalidInput(
                f"the snapshot {reference} has no {lacks}, so none of its forks can stand by",
                hint="take one of a running machine whose image has the agent",
            )
        self.spares.want({"snapshot": manifest.id}, count)

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
                    await self.snapshot(machine, message=message, now=True, report=report)
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
        now: bool = False,
        timeout_s: float | None = None,
        report: Report = ignore_progress,
    ) -> list[Machine | BoughError]:
        """New machines from a machine, running or not, or from a snapshot; one for each of `names`.

        Each works or fails by itself. From what runs they run, and have answered, unless `cold`.

        Args:
            names: None chooses one.
            cold: from the disks alone; they are stopped.
            now: also of a machine whose guest is still booting: the forks boot on.

        Raises:
            NotFound, WrongState, ...: the source cannot be forked; nothing was made.
        """
        source = self._find_machine(reference)
        if source is None:
            manifest = self.snapshots.store.resolve(reference)
        else:
            if not (cold or now):
                await wait_boot_end(source, report)
            manifest = await self._take(source, memory=not cold, keep=False, report=report)
        report(Progress("forking"))
        try:
            with self.snapshots.using(manifest), contextlib.ExitStack() as holds:
                saved = None if cold else await self.snapshots.saved_state(manifest)
                kind = Kind(manifest, identity) if source is None and saved is not None else None
                takes_spares = kind is not None and identity == "new"
                standing = self.spares.count(_is_fork_of(manifest)) if takes_spares else 0
                if saved is not None and len(names) - standing >= _MANY:
                    report(Progress("preparing one fork, for all of them"))
                    await self.prewarming.hurry(Kind(manifest, identity), len(names) - standing)
                    saved = await self.snapshots.saved_state(manifest)
                holds.enter_context(self.ahead.forking())
                limit = asyncio.Semaphore(_FORKS_AT_ONCE)

                async def one(name: str | None) -> Machine | BoughError:
                    async with limit:
                        try:
                            machine = None
                            if takes_spares:
                                machine = await self._fork_spare(manifest, name, ephemeral)
                            if machine is None and kind is not None:
                                self.ahead.expect(kind)
                                machine = await self._fork_begun(kind, name, ephemeral)
                            if machine is None:
                                machine = await self._fork(manifest, name, saved, identity, ephemeral)
                            # Its client holds it when it knows of it: when all of them are made.
                            holds.enter_context(self.hold(machine, grace_s=EPHEMERAL_GRACE_S))
                            if saved is not None and wait:
                                await machine.wait_ready(timeout_s=timeout_s)
                                if len(names) > 1:
                                    self._let_others_go_first(machine, holds)
                            return machine
                        except BoughError as error:
                            return error
                        except OSError as error:  # EMFILE, EIO: the others may have been luckier
                            return HostLacks(f"the host gave out: {error}")

                began = time.monotonic()
                made = list(await asyncio.gather(*(one(name) for name in names)))
                if saved is not None and saved.frozen is None and wait and len(names) >= _FORKS_AT_ONCE:
                    self.prewarming.started(len(names), time.monotonic() - began)
                return made
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
        hold: bool = False,
    ) -> Machine:
        """`hold` is Machine.start's; then its name is one that nobody would choose."""
        machine_id = new_machine_id()
        if name is None:
            name = f"fork-{machine_id}" if hold else self._free_name(_stem(manifest, spec))
        with self._reserve(name) as reserved:
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
            if saved is not None and saved.rehearsal is not None:
                record.ports = []  # nobody is to find it
            made = MachinePaths(self.home.incoming / machine_id, self.home.runtime / machine_id)
            paths = self.home.machine(machine_id)
            try:
                await finish(asyncio.to_thread(self.snapshots.make_files, record, manifest, made))
                made.root.rename(paths.root)
            except BaseException:
                remove_tree(made.root)
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
                await machine.start(saved=saved, hold=hold)
            except BaseException:
                self._expire_unless_held(machine.id, grace_s=0)
                with contextlib.suppress(BoughError):
                    await self.delete(machine, force=True)
                raise
        return machine

    def _let_others_go_first(self, machine: Machine, call: contextlib.ExitStack) -> None:
        """What its new name has woken in it can wait until the others of the call have answered, and then
        for those that somebody wants something of: until it has settled."""
        machine.stand_back()
        if not machine.settling:
            call.callback(machine.stand_back, False)

    async def _fork_spare(
        self, manifest: SnapshotManifest, name: str | None, ephemeral: bool
    ) -> Machine | None:
        with contextlib.ExitStack() as stack:
            if name is not None:
                stack.enter_context(self._reserve(name))
            return await self._take_spare(_is_fork_of(manifest), name=name, ephemeral=ephemeral)

    async def _take_spare(
        self, fits: Callable[[Machine], bool], *, name: str | None, ephemeral: bool
    ) -> Machine | None:
        """One that stands by, and runs now; None: make one."""
        machine = self.spares.take(fits)
        if machine is None:
            return None
        machine.record.spare = False  # it gives way to nobody any more
        return await self._wake(machine, machine.standby.take(name=name, ephemeral=ephemeral), ephemeral)

    async def _begin_fork(self, kind: Kind) -> Begun:
        """See snapshots/ahead.py."""
        with self._standing_on(kind.manifest):
            saved = await self._saved_state(kind)
            machine = await self._fork(
                kind.manifest, None, saved, kind.identity, True, spec=kind.spec, spare=True, hold=True
            )
        self._holders[machine.id] = 1
        return Begun(kind, machine, saved)

    @contextmanager
    def _standing_on(self, manifest: SnapshotManifest) -> Iterator[None]:
        """For what nobody asked for: deleted meanwhile, a snapshot goes at last when the block ends."""
        try:
            with self.snapshots.using(manifest):
                yield
        finally:
            self._collect()

    async def _saved_state(self, kind: Kind) -> SavedState:
        """Of a snapshot that is whole by now, or is still being written down. Raises NotFound."""
        store, snapshot_id = self.snapshots.store, kind.manifest.id
        saved = await self.snapshots.saved_state(store.get(snapshot_id)) if store.has(snapshot_id) else None
        if saved is None:
            raise NotFound(f"the memory of snapshot {kind.manifest.id} is gone")
        return saved

    async def _rehearse(self, kind: Kind, hurry: Hurry) -> FrozenProcess:
        """See machines/rehearsal.py. Raises BoughError, OSError: forks of that snapshot start as they did.

        Args:
            hurry: whether a user waits for it.
        """
        with self._standing_on(kind.manifest):
            await self._check_can_be_frozen(kind)
            saved = await self._saved_state(kind)
            devices, rehearsal = rehearse(saved.devices, hurry)
            begun = SavedState(saved.memory, devices, rehearsal=rehearsal)
            name = f"rehearsal-{new_machine_id()}"
            machine = await self._fork(kind.manifest, name, begun, "new", True, spec=kind.spec, spare=True)
            try:
                began = time.monotonic()
                self._holders[machine.id] = 1
                hurry.listen(lambda: machine.stand_back(False))
                machine.stand_back(not hurry.is_set)
                await machine.wait_ready()
                channel = machine.channel()  # without a step forward, as for somebody
                assert isinstance(channel, AgentChannel)  # the image has ours
                for _ in range(_REHEARSED_COMMANDS):
                    await run_script(channel, "true", timeout_s=_REHEARSED_COMMAND_S)
                await settle_identity(channel, machine.record)
                if machine.pid is not None:
                    await wait_quiet(machine.pid, began=began, hurry=hurry)
                overlays = await asyncio.to_thread(self.snapshots.fresh_overlays, kind.manifest, machine)
                return await machine.freeze(rehearsal, overlays, saved.memory)
            finally:
                await asyncio.shield(self._discard_spare(machine))

    async def _check_can_be_frozen(self, kind: Kind) -> None:
        """As far as can be told before. Raises HostLacks."""
        manifest = kind.manifest
        record = self.snapshots.fork_record(
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
        plan = await self._plan(record, self.home.machine(record.id))
        if os.uname().machine != FROZEN_HOST or likeness_of(plan) is None or not manifest.image_agent:
            raise HostLacks("processes of such a machine are not frozen here")
        barred = barring_process_image(used_settings(record.spec))
        if barred:
            raise HostLacks(f"machines with {', '.join(barred)} get no process image")

    async def _fork_begun(self, kind: Kind, name: str | None, ephemeral: bool) -> Machine | None:
        """One that was begun before, and runs now; None: make one."""
        with self._reserve(name or self._free_name(_stem(kind.manifest, kind.spec))) as reserved:
            begun = self.ahead.take(kind)
            if begun is None:
                return None
            waking = begun.machine.go_on(begun.saved, name=reserved, ephemeral=ephemeral)
            return await self._wake(begun.machine, waking, ephemeral)

    async def _wake(
        self, machine: Machine, waking: Coroutine[Any, Any, None], ephemeral: bool
    ) -> Machine | None:
        """It stood by, and is somebody's now; None: it was of no use."""
        try:
            await waking
        except BoughError as error:
            log.warning("a machine that stood by was of no use: %s", error)
            self._throw_away(machine)
            return None
        except BaseException:
            self._throw_away(machine)
            raise
        self._holders.pop(machine.id, None)
        if not ephemeral:
            await asyncio.to_thread(_sync_machine, machine)
        forked = machine.record.forked_from
        how = ("created", "") if forked is None else ("forked", f"from {forked}")
        self.events.emit(how[0], machine=machine.id, name=machine.name, detail=how[1])
        return machine

    def _throw_away(self, machine: Machine) -> None:
        """At once in everybody's eyes: another is to have its name."""
        machine.record.spare = machine.record.ephemeral = True
        self._holders.pop(machine.id, None)
        self.discard(machine)

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
        force: bool = False,
        report: Report,
    ) -> Machine:
        """The machine that is in a bundle; it goes on, where its memory is there.

        Args:
            force: also if it is larger than this host.

        Raises:
            BadBundle: nothing was made. NameTaken, BeyondHost, NotFound (its image), NoSpace
        """
        with self._half_made():
            async with taken_up(source, self.images, cold=cold, force=force, report=report) as arrival:
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


def _is_fork_of(manifest: SnapshotManifest) -> Callable[[Machine], bool]:
    return lambda machine: machine.record.forked_from == manifest.id


def _stem(manifest: SnapshotManifest, spec: MachineSpec | None) -> str:
    """Of the name of a machine that nobody has given one."""
    return manifest.machine_name if spec is None else spec.image


def _sync_machine(machine: Machine) -> None:
    """One that was ephemeral is to survive a power cut from now on."""
    for path in (*machine.paths.disks.iterdir(), machine.paths.record):
        sync_file(path)
    for directory in (machine.paths.disks, machine.paths.root, machine.paths.root.parent):
        sync_directory(directory)
