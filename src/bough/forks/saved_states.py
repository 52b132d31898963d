"""The saved state that a fork starts from: memory, devices, and the snapshot's process image if any."""

from __future__ import annotations

from dataclasses import replace

from bough.forks.level import Level
from bough.forks.pool import Pool
from bough.machines.saved_state import SavedState
from bough.snapshots.store import SnapshotManifest
from bough.snapshots.tree import SnapshotTree


class SavedStates:
    """Hands out saved states. The caller does not know how warm a state is."""

    def __init__(self, tree: SnapshotTree, pool: Pool) -> None:
        self._tree = tree
        self._pool = pool

    async def get(self, manifest: SnapshotManifest) -> SavedState | None:
        """Return the state; None if the snapshot has no memory. Raises SnapshotDamaged."""
        saved = await self._tree.saved_state(manifest)
        item = self._pool.find(Level.PREWARMED, manifest.id)
        if saved is None or item is None or not item.content.is_of_use:
            return saved
        item.use()
        return replace(saved, image=item.content)
