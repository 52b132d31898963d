"""`export` and `import`: a machine or a snapshot as one file, or as the parts for a registry."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager, nullcontext
from functools import partial
from typing import Any

from bough.bundle import Source
from bough.errors import BoughError
from bough.hypervisor.description import report_emulation
from bough.hypervisor.fork_maker import ForkMaker, ForkOrder
from bough.hypervisor.half_made import HalfMade
from bough.hypervisor.inventory import Inventory
from bough.hypervisor.names import Names
from bough.hypervisor.snapshot_keeper import SnapshotKeeper
from bough.images.agent_disk.store import AgentDiskStore
from bough.images.store import ImageStore
from bough.machines.events import Events
from bough.machines.machine import Machine
from bough.machines.state import State
from bough.paths import Home
from bough.progress import Progress, Report
from bough.snapshots.bundle_writing import Subject
from bough.snapshots.export import (
    Flat,
    Format,
    exported,
    flattened,
    snapshot_subject,
    suspended_subject,
)
from bough.snapshots.imports import Incoming, open_bundle, taken_up
from bough.snapshots.tree import Identity


class Bundles:
    def __init__(
        self,
        home: Home,
        events: Events,
        store: ImageStore,
        agent_disks: AgentDiskStore,
        inventory: Inventory,
        names: Names,
        keeper: SnapshotKeeper,
        maker: ForkMaker,
        half_made: HalfMade,
    ) -> None:
        self._home = home
        self._events = events
        self._store = store
        self._agent_disks = agent_disks
        self._inventory = inventory
        self._names = names
        self._keeper = keeper
        self._maker = maker
        self._half_made = half_made

    @asynccontextmanager
    async def export(
        self, reference: str, *, format: Format, disks_only: bool, thin: bool, report: Report
    ) -> AsyncIterator[Iterator[bytes]]:
        """Yield the pieces of the file, for a thread to read. See snapshots/export.py."""
        disks_only = disks_only or format != "bough"
        with self._half_made.working():
            async with (
                self._subject(reference, disks_only=disks_only, report=report) as subject,
                exported(subject, self._store, format=format, thin=thin, report=report) as pieces,
            ):
                yield pieces

    @asynccontextmanager
    async def _subject(self, reference: str, *, disks_only: bool, report: Report) -> AsyncIterator[Subject]:
        """Yield a machine's present state, or a snapshot; the files are kept until the block ends."""
        source = self._inventory.find_source(reference)
        if source is not None and source.state is State.SUSPENDED:
            async with source.operation("being exported", State.SUSPENDED):
                yield await suspended_subject(source, self._home, disks_only=disks_only)
            return
        tree = self._keeper.tree
        if source is None:
            manifest = tree.store.resolve(reference)
        else:
            manifest = await self._keeper.take(source, memory=not disks_only, keep=False, report=report)
        with self._keeper.of_source(source, manifest):
            saved = None if disks_only else await tree.saved_state(manifest)
            accelerator = source.record.accelerator if source else None
            if manifest.memory is not None:
                accelerator = manifest.memory.accelerator
            yield snapshot_subject(manifest, tree.store, saved, accelerator)

    def knows(self, reference: str) -> bool:
        """Return whether a machine or a snapshot has this name."""
        try:
            self._inventory.find_source(reference)
        except BoughError:
            return False
        return True

    @asynccontextmanager
    async def flattened(self, reference: str, *, disks_only: bool, report: Report) -> AsyncIterator[Flat]:
        """Provide a machine or a snapshot with its disks as raw files. See snapshots/export.py."""
        with self._half_made.working():
            async with (
                self._subject(reference, disks_only=disks_only, report=report) as subject,
                flattened(subject, self._store, thin=False, report=report) as flat,
            ):
                yield flat

    async def import_bundle(self, source: Source, **options: Any) -> Machine:
        """Create the machine of a bundle; see `import_from`."""
        return await self.import_from(partial(open_bundle, source), nullcontext(), **options)

    async def import_from(
        self,
        open_it: Callable[[], Incoming],
        ready: AbstractAsyncContextManager[None],
        *,
        name: str | None,
        identity: Identity,
        cold: bool,
        force: bool = False,
        accelerator: str = "auto",
        report: Report,
    ) -> Machine:
        """Create the machine of a bundle or an artifact. The machine runs if its memory is there.

        Args:
            open_it: reads the manifest. Blocking.
            ready: entered after the checks, before the parts are read.
            force: also if the machine asks for more than the host has.
            accelerator: of the memory. "auto": refuse memory that would continue more slowly than KVM.

        Raises:
            BadBundle: nothing was made. NameTaken, BeyondHost, NotFound (its image), NoSpace
        """
        tree = self._keeper.tree
        with ExitStack() as used:
            with self._half_made.working():
                async with taken_up(
                    open_it,
                    self._store,
                    self._agent_disks,
                    cold=cold,
                    force=force,
                    accelerator=accelerator,
                    report=report,
                ) as arrival:
                    name = name or arrival.name
                    self._names.check_free(name)  # before the rest is read
                    if arrival.agent_disk is not None:
                        used.enter_context(self._agent_disks.using(*arrival.agent_disk))
                    async with ready:
                        made = await arrival.read()
                    # Before the snapshot is added: until the machine is made no other file needs it, and the
                    # end of any other operation removes unneeded snapshots.
                    used.enter_context(self._keeper.used_in_background(arrival.manifest))
                    tree.store.add(made, arrival.manifest)
            report(Progress("making the machine"))
            order = ForkOrder(arrival.manifest, arrival.saved, identity, name=name)
            machine = await self._maker.make(order)
        report_emulation([machine], report)
        self._events.emit("imported", machine=machine.id, name=machine.name)
        return machine
