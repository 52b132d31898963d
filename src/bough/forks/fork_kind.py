"""Kinds of forks: a fork that is prepared for a kind serves any request of the same kind."""

from __future__ import annotations

from dataclasses import dataclass

from bough.snapshots.store import SnapshotManifest
from bough.snapshots.tree import Identity
from bough.spec import MachineSpec


@dataclass(frozen=True)
class ForkKind:
    """Properties shared by forks of one kind.

    Attributes:
        spec: the spec given to `run`; None: the snapshot's spec.
    """

    manifest: SnapshotManifest
    identity: Identity
    spec: MachineSpec | None = None

    def is_like(self, other: ForkKind) -> bool:
        ours = (self.manifest.id, self.identity, self.spec)
        return ours == (other.manifest.id, other.identity, other.spec)
