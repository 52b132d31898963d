"""The snapshots on disk: a directory for each, with the manifest written last.

The overlays of a snapshot need backing files: overlays of earlier snapshots, and an image. The memory may be
stored as the difference from another snapshot. So a deleted snapshot stays, in the state "layers", while
other files depend on it. A deleted snapshot is not listed and cannot be forked. `collect` removes unneeded
snapshots.
"""

from __future__ import annotations

import logging
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from bough.errors import Conflict, NameTaken, NotFound
from bough.machines.media import Media
from bough.machines.record import FirstBoot, Hardware, ProgramRun, now
from bough.paths import Home, SnapshotPaths
from bough.spec import MachineSpec
from bough.spec.container import Container
from bough.storage import sync_directory, write_json

log = logging.getLogger("bough.snapshots")

_LEAST_PREFIX = 4


class _Kept(BaseModel):
    # A newer bough may have written further fields.
    model_config = ConfigDict(extra="allow", frozen=True)


class SnapshotDisk(_Kept):
    """A disk of a snapshot.

    Attributes:
        layers: the chain of files, relative to BOUGH_HOME, nearest first; the first is the snapshot's own.
    """

    size_bytes: int
    layers: tuple[str, ...]


class SnapshotMemory(_Kept):
    """Memory and devices of a running machine.

    Attributes:
        size_bytes: size of the guest's RAM.
        stored_bytes: size of the file `memory`: the content of the memory or, with a `base`, its difference
            from that snapshot.
        base: id of the snapshot that this memory is a difference from.
        sha256: over extents, memory and devices.
        accelerator, qemu_version: of the process that the memory was taken from.
    """

    size_bytes: int
    stored_bytes: int
    base: str | None = None
    sha256: str
    accelerator: str | None = None
    qemu_version: str | None = None


class SnapshotManifest(_Kept):
    """The description of a snapshot.

    Attributes:
        state: "whole"; "layers" while the snapshot is being taken, and after its deletion (see above).
        consistency:
            "memory": a running machine, with its memory.
            "stopped": a machine that was off.
            "frozen": disks of a running machine, with quiesced file systems.
            "crash": disks of a running machine whose file systems could not be quiesced.
        parent: the machine's previous snapshot: the last one taken of the machine, restored or forked.
        agent_disk: digest of the machine's agent disk, which forks with the memory need; None: it had none.
        container, program: as in the machine's record.
        project: id of the machine's project, whose networks its forks see.
        pause_ms: time in which the vCPUs did not run.
        booted_key: set for a booted snapshot, which no user asked for (see forks/booted.py). Such a snapshot
            is not listed.
        part_of: id of the snapshot of a project that this snapshot is a part of; a part is not listed.
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
    agent_disk: str | None = None
    container: Container | None = None
    program: ProgramRun | None = None
    hardware: Hardware
    domain: str | None = None
    project: str | None = None
    first_boot: FirstBoot
    booted_boot: str | None = None
    media: Media = Field(default_factory=Media)
    disks: tuple[SnapshotDisk, ...]
    memory: SnapshotMemory | None = None
    pause_ms: float | None = None
    booted_key: str | None = None
    part_of: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _read_old_names(cls, value: Any) -> Any:
        """Read a manifest of an earlier version, with another name of a field."""
        if not isinstance(value, Mapping) or "ready_key" not in value:
            return value
        rest = {name: one for name, one in value.items() if name != "ready_key"}
        return {**rest, "booted_key": value["ready_key"]}

    @property
    def is_listed(self) -> bool:
        """Return whether a user took the snapshot, and can use and delete the snapshot singly."""
        return self.state == "whole" and self.booted_key is None and self.part_of is None


def new_snapshot_id() -> str:
    return secrets.token_hex(6)


class SnapshotStore:
    """All manifests, in memory and on disk. Only the service writes manifests."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self._manifests: dict[str, SnapshotManifest] = {}
        #: Damaged manifests and records. The dependencies of damaged objects are unknown, so nothing is
        #: removed while the set is not empty.
        self._unreadable: set[str] = set()

    def open(self) -> None:
        for root in self.home.snapshots.iterdir():
            try:
                content = self.home.snapshot(root.name).manifest.read_bytes()
                self._manifests[root.name] = SnapshotManifest.model_validate_json(content)
            except (OSError, ValueError) as error:
                # The other snapshots must stay usable.
                log.error("the manifest of snapshot %s cannot be read: %s", root.name, error)
                self._unreadable.add(root.name)

    def keep_all(self, damaged: str) -> None:
        """Keep all files from now on.

        The record of a machine cannot be read, and the machine may need any file.
        """
        self._unreadable.add(damaged)

    @property
    def is_damaged(self) -> bool:
        """Return whether a manifest or record cannot be read, so that nothing may be removed."""
        return bool(self._unreadable)

    def paths(self, snapshot_id: str) -> SnapshotPaths:
        return self.home.snapshot(snapshot_id)

    def all(self) -> list[SnapshotManifest]:
        """Return the usable snapshots taken by users, the oldest first."""
        listed = (manifest for manifest in self._manifests.values() if manifest.is_listed)
        return sorted(listed, key=lambda manifest: manifest.created)

    def booted(self) -> list[SnapshotManifest]:
        """Return the booted snapshots."""
        return [m for m in self._manifests.values() if m.state == "whole" and m.booted_key is not None]

    def parts(self) -> list[SnapshotManifest]:
        """Return the usable parts of snapshots of projects."""
        return [m for m in self._manifests.values() if m.state == "whole" and m.part_of is not None]

    def every(self) -> list[SnapshotManifest]:
        """Return all snapshots, also deleted snapshots with files that are still needed."""
        return list(self._manifests.values())

    def get(self, snapshot_id: str) -> SnapshotManifest:
        """Return a snapshot by the full id, also a deleted snapshot with needed files."""
        return self._manifests[snapshot_id]

    def has(self, snapshot_id: str) -> bool:
        return snapshot_id in self._manifests

    def without_dependents(self) -> list[SnapshotManifest]:
        """Return the deleted snapshots with memory that no other snapshot's memory is based on."""
        bases = {m.memory.base for m in self._manifests.values() if m.memory is not None}
        return [
            m
            for m in self._manifests.values()
            if m.state == "layers" and m.memory is not None and m.id not in bases
        ]

    def resolve(self, reference: str) -> SnapshotManifest:
        """Find a snapshot by label, id, or an unambiguous start of the id (4 digits or more).

        Raises:
            NotFound: with the nearest label.
            Conflict: several ids start with `reference`; or the snapshot is a part of a project's snapshot.
        """
        found = [m for m in self.all() if reference in (m.label, m.id)] or [
            m for m in self.all() if len(reference) >= _LEAST_PREFIX and m.id.startswith(reference)
        ]
        if len(found) == 1:
            return found[0]
        if found:
            raise Conflict(
                f"{reference!r} is ambiguous: {len(found)} snapshot ids match", hint="use more characters"
            )
        for part in self.parts():
            if part.id == reference:
                raise Conflict(
                    f"snapshot {part.id} is a part of snapshot {part.part_of} of a project",
                    hint=f"use the whole: bough fork {part.part_of}, bough snapshot delete {part.part_of}",
                    snapshot=part.part_of,
                )
        close = get_close_matches(reference, [m.label for m in self.all() if m.label], n=1)
        hint = f"did you mean '{close[0]}'?" if close else "list all snapshots: bough snapshot list"
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
        """Check that no snapshot has the label. Raises NameTaken."""
        if label is not None and any(label in (m.label, m.id) for m in self.all()):
            raise NameTaken(
                f"a snapshot labelled '{label}' exists already",
                hint=f"choose another label, or delete it: bough snapshot delete {label}",
                name=label,
            )

    def add(self, made: SnapshotPaths, manifest: SnapshotManifest) -> None:
        """Move a directory below incoming/ into the store."""
        made.root.chmod(0o711)
        write_json(made.manifest, manifest.model_dump(mode="json"), mode=0o600)
        made.root.rename(self.paths(manifest.id).root)
        sync_directory(self.home.snapshots)
        self._manifests[manifest.id] = manifest

    def update(self, manifest: SnapshotManifest) -> None:
        write_json(self.paths(manifest.id).manifest, manifest.model_dump(mode="json"), mode=0o600)
        self._manifests[manifest.id] = manifest

    def retire(self, snapshot_id: str) -> None:
        """Delete a snapshot, but keep the files that other files depend on."""
        manifest = self._manifests[snapshot_id]
        self.update(manifest.model_copy(update={"state": "layers", "label": None, "message": ""}))

    def collect(self, layers_in_use: Iterable[str]) -> list[str]:
        """Remove unneeded deleted snapshots. Return their ids.

        Args:
            layers_in_use: files that machines need, relative to BOUGH_HOME.
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
        """Yield the digest of each image that a snapshot needs, and the name of the snapshot."""
        for manifest in self._manifests.values():
            if manifest in self.booted():
                continue  # a booted snapshot does not keep the image
            for digest in {manifest.image_digest, *manifest.media.digests}:
                yield digest, f"snapshot {manifest.label or manifest.id}"

    def bytes_on_disk(self, snapshot_id: str) -> int:
        root = self.paths(snapshot_id).root
        return sum(path.lstat().st_blocks * 512 for path in root.rglob("*") if path.is_file())


def layers_of(manifest: SnapshotManifest) -> Iterator[str]:
    for disk in manifest.disks:
        yield from disk.layers
