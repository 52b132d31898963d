"""What is kept of snapshots: a directory each, with a manifest that is written last.

A snapshot's disks stand on those of earlier snapshots and on an image; its memory may be kept as what
differs from another's. So one that is deleted stays as `layers` while something stands on it: it can no
longer be seen or forked, and `collect` removes it when nothing needs it any more.
"""

from __future__ import annotations

import logging
import secrets
import shutil
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from bough.errors import Conflict, NameTaken, NotFound
from bough.machines.media import Media
from bough.machines.record import FirstBoot, Hardware, now
from bough.paths import Home, SnapshotPaths
from bough.spec import MachineSpec
from bough.storage import sync_directory, write_json

log = logging.getLogger("bough.snapshots")

_LEAST_PREFIX = 4


class _Kept(BaseModel):
    # A manifest of a newer bough may hold more than this one knows.
    model_config = ConfigDict(extra="allow", frozen=True)


class SnapshotDisk(_Kept):
    """`layers`: the files, relative to BOUGH_HOME, nearest first; the first is the snapshot's own."""

    size_bytes: int
    layers: tuple[str, ...]


class SnapshotMemory(_Kept):
    """Memory and devices of a machine that ran.

    Attributes:
        stored_bytes: in the file `memory`: what the machine's memory held or, with a `base`, what differs
            from that snapshot's.
        sha256: over extents, memory and devices.
        accelerator, qemu_version: of the process that it was taken of.
    """

    size_bytes: int
    stored_bytes: int
    base: str | None = None
    sha256: str
    accelerator: str | None = None
    qemu_version: str | None = None


class SnapshotManifest(_Kept):
    """Attributes:
    state: "whole"; "layers" while it is being taken and after it was deleted (see above).
    consistency: "memory": of a running machine, with its memory; "stopped": of one that was off;
        "frozen": disks of a running one, whose file systems were frozen; "crash": ... could not be.
    parent: the snapshot that the machine had come from or passed before.
    ready_key: set for one that `run` goes on from, and nobody asked for (see ready.py); not listed.
    """

    version: int = 1
    id: str
    state: Literal["whole", "layers"]
    label: str | None = None
    message: str = ""
    created: str = Field(default_factory=now)
    parent: str | None = None
    machine: str
    machine_name: str
    consistency: Literal["memory", "stopped", "frozen", "crash"] = "stopped"
    spec: MachineSpec
    image_digest: str
    image_agent: bool
    hardware: Hardware
    domain: str | None = None
    first_boot: FirstBoot
    booted_boot: str | None = None
    media: Media = Field(default_factory=Media)
    disks: tuple[SnapshotDisk, ...]
    memory: SnapshotMemory | None = None
    pause_ms: float | None = None
    ready_key: str | None = None


def new_snapshot_id() -> str:
    return secrets.token_hex(6)


class SnapshotStore:
    """All manifests, in memory as on disk; the service is the only one who writes them."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self._manifests: dict[str, SnapshotManifest] = {}
        #: What is damaged, and nobody knows what it stands on: while there is such a thing, all layers stay.
        self._unreadable: set[str] = set()

    def open(self) -> None:
        for root in self.home.snapshots.iterdir():
            try:
                content = self.home.snapshot(root.name).manifest.read_bytes()
                self._manifests[root.name] = SnapshotManifest.model_validate_json(content)
            except (OSError, ValueError) as error:
                # One that is damaged must not keep the others from being used.
                log.error("the manifest of snapshot %s cannot be read: %s", root.name, error)
                self._unreadable.add(root.name)

    def keep_all(self, damaged: str) -> None:
        """The record of a machine cannot be read: it may stand on any layer."""
        self._unreadable.add(damaged)

    def paths(self, snapshot_id: str) -> SnapshotPaths:
        return self.home.snapshot(snapshot_id)

    def all(self) -> list[SnapshotManifest]:
        """Those that can be used and somebody took, the oldest first."""
        whole = (m for m in self._manifests.values() if m.state == "whole" and m.ready_key is None)
        return sorted(whole, key=lambda manifest: manifest.created)

    def ready(self) -> list[SnapshotManifest]:
        """Those that `run` goes on from."""
        return [m for m in self._manifests.values() if m.state == "whole" and m.ready_key is not None]

    def every(self) -> list[SnapshotManifest]:
        """Also those of which only layers are left."""
        return list(self._manifests.values())

    def get(self, snapshot_id: str) -> SnapshotManifest:
        """Also one of which only layers are left."""
        return self._manifests[snapshot_id]

    def has(self, snapshot_id: str) -> bool:
        return snapshot_id in self._manifests

    def without_dependents(self) -> list[SnapshotManifest]:
        """Those that are retired and hold memory that nobody's memory stands on."""
        bases = {m.memory.base for m in self._manifests.values() if m.memory is not None}
        return [
            m
            for m in self._manifests.values()
            if m.state == "layers" and m.memory is not None and m.id not in bases
        ]

    def resolve(self, reference: str) -> SnapshotManifest:
        """By label, id, or a beginning of an id that only one has (4 digits or more).

        Raises:
            NotFound: with the nearest label.
            Conflict: more than one id begins so.
        """
        found = [m for m in self.all() if reference in (m.label, m.id)] or [
            m for m in self.all() if len(reference) >= _LEAST_PREFIX and m.id.startswith(reference)
        ]
        if len(found) == 1:
            return found[0]
        if found:
            raise Conflict(
                f"{reference!r} is the beginning of {len(found)} snapshots' ids", hint="give more of it"
            )
        close = get_close_matches(reference, [m.label for m in self.all() if m.label], n=1)
        hint = f"did you mean '{close[0]}'?" if close else "bough snapshot list shows them all"
        raise NotFound(
            f"no snapshot is called {reference[:80]!r}", hint=hint, kind="snapshot", name=reference[:80]
        )

    def knows(self, reference: str) -> bool:
        try:
            self.resolve(reference)
        except NotFound:
            return False
        return True

    def check_label(self, label: str | None) -> None:
        """Raises NameTaken."""
        if label is not None and any(label in (m.label, m.id) for m in self.all()):
            raise NameTaken(
                f"a snapshot labelled '{label}' exists already",
                hint=f"choose another label, or delete it: bough snapshot delete {label}",
                name=label,
            )

    def add(self, made: SnapshotPaths, manifest: SnapshotManifest) -> None:
        """Take over a directory below incoming/."""
        made.root.chmod(0o711)
        write_json(made.manifest, manifest.model_dump(mode="json"), mode=0o600)
        made.root.rename(self.paths(manifest.id).root)
        sync_directory(self.home.snapshots)
        self._manifests[manifest.id] = manifest

    def update(self, manifest: SnapshotManifest) -> None:
        write_json(self.paths(manifest.id).manifest, manifest.model_dump(mode="json"), mode=0o600)
        self._manifests[manifest.id] = manifest

    def retire(self, snapshot_id: str) -> None:
        """It is deleted: from now on only what stands on it keeps it."""
        manifest = self._manifests[snapshot_id]
        self.update(manifest.model_copy(update={"state": "layers", "label": None, "message": ""}))

    def collect(self, layers_in_use: Iterable[str]) -> list[str]:
        """Remove what is retired and nothing stands on: their ids.

        Args:
            layers_in_use: files that machines stand on, relative to BOUGH_HOME.
        """
        in_use = set(layers_in_use)
        removed: list[str] = []
        if self._unreadable:
            return removed
        while doomed := [m.id for m in self._manifests.values() if not self._is_needed(m, in_use)]:
            for snapshot_id in doomed:
                self._remove(snapshot_id)
            removed += doomed
        return removed

    def _is_needed(self, manifest: SnapshotManifest, in_use: set[str]) -> bool:
        if manifest.state == "whole":
            return True
        prefix = f"snapshots/{manifest.id}/"
        if any(layer.startswith(prefix) for layer in in_use):
            return True
        for other in self._manifests.values():
            if other.id == manifest.id:
                continue
            if other.memory is not None and other.memory.base == manifest.id:
                return True
            if any(layer.startswith(prefix) for layer in layers_of(other)):
                return True
        return False

    def _remove(self, snapshot_id: str) -> None:
        grave = self.home.incoming / f"{snapshot_id}.deleted"
        self.paths(snapshot_id).root.rename(grave)
        sync_directory(self.home.snapshots)
        del self._manifests[snapshot_id]
        shutil.rmtree(grave)

    def images_in_use(self) -> Iterator[tuple[str, str]]:
        """(digest, who stands on it)"""
        for manifest in self._manifests.values():
            if manifest in self.ready():
                continue  # nobody's, and gone before its image is
            for digest in {manifest.image_digest, *manifest.media.digests}:
                yield digest, f"snapshot {manifest.label or manifest.id}"

    def bytes_on_disk(self, snapshot_id: str) -> int:
        root = self.paths(snapshot_id).root
        return sum(path.lstat().st_blocks * 512 for path in root.rglob("*") if path.is_file())


def layers_of(manifest: SnapshotManifest) -> Iterator[str]:
    for disk in manifest.disks:
        yield from disk.layers
