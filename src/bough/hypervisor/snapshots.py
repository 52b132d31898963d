"""`snapshot` and `restore`."""

from __future__ import annotations

import asyncio
from typing import Any

from bough.forks.fork_kind import ForkKind
from bough.forks.loaded import LoadedForks
from bough.forks.saved_states import SavedStates
from bough.forks.standby import StandbyMachines
from bough.hypervisor.inventory import Inventory
from bough.hypervisor.snapshot_keeper import SnapshotKeeper
from bough.machines.booted import wait_boot_end
from bough.machines.events import Events
from bough.machines.machine import Machine
from bough.machines.state import LIVE, State
from bough.progress import Progress, Report, ignore_progress
from bough.snapshots.store import SnapshotManifest
from bough.snapshots.tree import SnapshotTree
from bough.spec import check_name


class Snapshots:
    """Use cases of snapshots.

    Attributes:
        tree: all snapshots.
    """

    def __init__(
        self,
        inventory: Inventory,
        keeper: SnapshotKeeper,
        states: SavedStates,
        standby: StandbyMachines,
        loaded: LoadedForks,
        events: Events,
    ) -> None:
        self.tree: SnapshotTree = keeper.tree
        self._inventory = inventory
        self._keeper = keeper
        self._states = states
        self._standby = standby
        self._loaded = loaded
        self._events = events

    async def verify(self, reference: str) -> dict[str, Any]:
        """Read and check all files of a snapshot. Raises NotFound, Conflict, SnapshotDamaged."""
        manifest = self.tree.store.resolve(reference)
        with self._keeper.used_in_background(manifest):
            return await self.tree.verify(manifest)

    async def take(
        self,
        machine: Machine,
        *,
        label: str | None = None,
        message: str = "",
        memory: bool = True,
        now: bool = False,
        report: Report = ignore_progress,
    ) -> SnapshotManifest:
        """Take a snapshot; see SnapshotTree.take. The first fork is begun while the memory is written.

        Args:
            now: do not wait for the end of the guest's boot; each fork then finishes the boot by itself.
        """
        if memory and not now:
            await wait_boot_end(machine, report)
        if label is not None:
            check_name(label)
        captured: list[str] = []

        def begin_first_fork(manifest: SnapshotManifest) -> None:
            captured.append(manifest.id)
            self._loaded.foresee(ForkKind(manifest, "new"))

        options = {"label": label, "message": message, "memory": memory}
        try:
            manifest = await self._keeper.take(machine, captured=begin_first_fork, report=report, **options)
        except Exception:  # not CancelledError: the snapshot is completed without its caller
            for snapshot_id in captured:
                self._loaded.forget(snapshot_id)
            raise
        if manifest.memory is not None:
            self._loaded.offer(ForkKind(manifest, "new"))
        self._events.emit("snapshotted", machine=machine.id, name=machine.name, detail=manifest.id)
        return manifest

    def delete(self, reference: str) -> None:
        """Delete a snapshot and its standby machines. Files with other users stay."""
        manifest = self.tree.store.resolve(reference)
        self._standby.want({"snapshot": manifest.id}, 0)
        self._keeper.drop(manifest)

    async def restore(
        self, machine: Machine, reference: str, *, keep: bool = False, report: Report = ignore_progress
    ) -> None:
        """Return a machine to a snapshot. The machine runs if the snapshot has memory. A cancelled call does
        not interrupt the restore.

        Args:
            keep: take a snapshot of the present state first.
        """
        manifest = self.tree.store.resolve(reference)
        self.tree.check_own(machine, manifest)
        work = self._restore(machine, manifest, keep, report)
        try:
            await asyncio.shield(machine.own(work, "restore"))
        finally:
            self._inventory.collect()
        if machine.state is State.RUNNING:
            await machine.wait_ready(report=report)
        self._events.emit("restored", machine=machine.id, name=machine.name, detail=manifest.id)

    async def _restore(
        self, machine: Machine, manifest: SnapshotManifest, keep: bool, report: Report
    ) -> None:
        with machine.claim("being restored"), self.tree.using(manifest):
            saved = await self._states.get(manifest)
            if keep:
                message = f"before a restore to {manifest.id}"
                await self.take(machine, message=message, now=True, report=report)
            if machine.state in LIVE or machine.state is State.SUSPENDED:
                await machine.stop(force=True)
            report(Progress("restoring"))
            await self.tree.put_back(machine, manifest)
            if saved is not None:
                await machine.start(report, saved=saved)
