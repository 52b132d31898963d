"""The saved state that a fork starts from: memory, devices, and the snapshot's process image if any."""

from __future__ import annotations

from dataclasses import replace

from bough.forks.process_images import ProcessImages
from bough.machines.saved_state import SavedState
from bough.snapshots.store import SnapshotManifest
from bough.snapshots.tree import SnapshotTree


class SavedStates:
    """Hands out saved states. The caller does not know how warm a state is."""

    def __init__(self, tree: SnapshotTree, images: ProcessImages) -> None:
        self._tree = tree
        self._images = images

    async def get(self, manifest: SnapshotManifest) -> SavedState | None:
        """Return the state; None if the snapshot has no memory. Raises SnapshotDamaged."""
        saved = await self._tree.saved_state(manifest)
        return None if saved is None else replace(saved, image=self._images.get(manifest.id))
