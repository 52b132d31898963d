"""Take and drop snapshots and their machines, and keep snapshots while a fork is made."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from bough.forks.booted import stale_booted
from bough.hypervisor.inventory import Inventory
from bough.images.store import ImageStore
from bough.machines.machine import Machine
from bough.snapshots.moment import HoldFrames, Meeting, capture_together
from bough.snapshots.store import SnapshotManifest
from bough.snapshots.tree import SnapshotTree


class SnapshotKeeper:
    """Takes and drops snapshots.

    Attributes:
        on_drop: called with the id of each snapshot before its deletion.
    """

    def __init__(self, tree: SnapshotTree, inventory: Inventory, store: ImageStore) -> None:
        self.tree = tree
        self.on_drop: list[Callable[[str], None]] = []
        self._inventory = inventory
        self._store = store

    async def take(self, machine: Machine, **options: Any) -> SnapshotManifest:
        """Take a snapshot; see SnapshotTree.take. A failure leaves nothing behind."""
        try:
            return await self.tree.take(machine, **options)
        finally:  # a snapshot in use by this one may have been deleted meanwhile
            self._inventory.collect()

    async def take_together(
        self, machines: Sequence[Machine], hold: HoldFrames, *, keep: bool = True, **options: Any
    ) -> list[SnapshotManifest]:
        """Take a snapshot of each machine, all at the same moment; see SnapshotTree.take.

        Args:
            hold: holds the frames between the machines.

        Raises the first error. Then no snapshot is left, and each machine is as before.
        """
        taken: list[SnapshotManifest] = []

        async def take(machine: Machine, moment: Meeting) -> SnapshotManifest:
            manifest = await self.tree.take(machine, keep=keep, moment=moment, **options)
            taken.append(manifest)
            return manifest

        try:
            return await capture_together([partial(take, machine) for machine in machines], hold)
        except BaseException:
            for manifest in taken:
                (self.drop if keep else self.release)(manifest)
            raise
        finally:
            self._inventory.collect()

    def release(self, manifest: SnapshotManifest) -> None:
        """Release a snapshot that was not written. Its forks have started."""
        self._tell_drop(manifest)
        self.tree.forget(manifest)

    def drop(self, manifest: SnapshotManifest) -> None:
        """Delete a snapshot. Files with other users stay."""
        self._tell_drop(manifest)
        self.tree.delete(manifest, self._inventory.records())

    def _tell_drop(self, manifest: SnapshotManifest) -> None:
        for forget in self.on_drop:
            forget(manifest.id)

    def drop_all(self, manifests: Iterable[SnapshotManifest]) -> None:
        for manifest in list(manifests):
            self.drop(manifest)

    def drop_stale_booted(self) -> None:
        """Delete booted snapshots of deleted images, unused booted snapshots, and the oldest
        above the limit.
        """
        digests = [entry.manifest.digest for entry in self._store.entries()]
        self.drop_all(stale_booted(self.tree.store, digests))

    @contextmanager
    def used_in_background(self, manifest: SnapshotManifest) -> Iterator[None]:
        """Keep a snapshot's files until the block ends; a deletion of the snapshot takes effect then."""
        try:
            with self.tree.using(manifest):
                yield
        finally:
            self._inventory.collect()

    @contextmanager
    def of_source(self, source: Machine | None, manifest: SnapshotManifest) -> Iterator[None]:
        """Use a snapshot in the block. A snapshot that was taken of `source` for the block is deleted
        afterwards.
        """
        try:
            with self.tree.using(manifest):
                yield
        finally:
            if source is not None:
                self.release(manifest)
            self._inventory.collect()
