"""`diff`: the differences between two systems: images, snapshots, machines."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bough.differences.process import Side, compare
from bough.differences.sysctls import compare_values
from bough.errors import BoughError, Conflict, InvalidInput, NotFound
from bough.hypervisor.inventory import Inventory
from bough.hypervisor.live_values import LiveValues, read_live_values
from bough.hypervisor.snapshot_disks import SnapshotDisks
from bough.hypervisor.snapshot_keeper import SnapshotKeeper
from bough.images.confined import Confinement
from bough.images.store import ImageManifest, ImageStore
from bough.machines.disks.creation import disk_chain
from bough.machines.machine import Machine
from bough.machines.plan import host_arch
from bough.machines.state import LIVE, State
from bough.paths import Home
from bough.progress import Progress, Report
from bough.qemu.binary import find_qemu
from bough.qemu.jail_probe import probe_jail
from bough.snapshots.store import SnapshotManifest

Kind = Literal["machine", "snapshot", "image"]
_KINDS: tuple[Kind, ...] = ("machine", "snapshot", "image")
_AT_REST = (State.STOPPED, State.FAILED, State.SUSPENDED)


@dataclass(frozen=True)
class Subject:
    """A system to compare.

    Attributes:
        found: the machine, the manifest of a snapshot, or the manifest of an image.
    """

    kind: Kind
    found: Machine | SnapshotManifest | ImageManifest

    @property
    def id(self) -> str:
        return self.found.digest if isinstance(self.found, ImageManifest) else self.found.id

    @property
    def name(self) -> str:
        if isinstance(self.found, SnapshotManifest):
            return self.found.label or self.found.id
        return self.found.label if isinstance(self.found, ImageManifest) else self.found.name

    @property
    def arch(self) -> str:
        if isinstance(self.found, ImageManifest):
            return self.found.arch
        hardware = self.found.record.hardware if isinstance(self.found, Machine) else self.found.hardware
        return hardware.arch

    @property
    def runs(self) -> bool:
        return isinstance(self.found, Machine) and self.found.state is State.RUNNING

    def __str__(self) -> str:
        return f"{self.kind} {self.name!r}"


@dataclass(frozen=True)
class View:
    """A system whose disks do not change while the view exists.

    Attributes:
        live: values of a running guest; None: the guest does not run, or did not answer.
    """

    subject: Subject
    disks: Sequence[Sequence[Path]]
    live: LiveValues | None = None
    notes: tuple[str, ...] = ()

    @property
    def side(self) -> Side:
        return Side(str(self.subject), self.disks)

    def describe(self) -> dict[str, Any]:
        subject = self.subject
        told: dict[str, Any] = {
            "kind": subject.kind,
            "name": subject.name,
            "id": subject.id,
            "arch": subject.arch,
        }
        if isinstance(subject.found, Machine):
            told["state"] = subject.found.state.value
        if self.live is not None:
            told["kernel"] = self.live.kernel
        return told


class Differences:
    """Compares systems. The guests are not changed."""

    def __init__(
        self,
        home: Home,
        store: ImageStore,
        inventory: Inventory,
        keeper: SnapshotKeeper,
        snapshot_disks: SnapshotDisks,
    ) -> None:
        self._home = home
        self._store = store
        self._inventory = inventory
        self._keeper = keeper
        self._snapshot_disks = snapshot_disks

    async def compare(self, after: str, before: str | None, report: Report) -> dict[str, Any]:
        """Return the differences from `before` to `after`.

        Args:
            before: None: the snapshot that `after` was forked from, or else its image.

        Raises:
            NotFound, Conflict: a reference names nothing, or several things; a machine is busy.
            InvalidInput: a side cannot be compared.
        """
        newer = self._resolve(after)
        older = self._base_of(newer) if before is None else self._resolve(before)
        if (older.kind, older.id) == (newer.kind, newer.id):
            raise InvalidInput(f"{newer} cannot be compared with itself", hint="bough diff BEFORE AFTER")
        both_run = older.runs and newer.runs
        async with (
            self._view(older, both_run, report) as first,
            self._view(newer, both_run, report) as second,
        ):
            report(Progress("comparing files"))
            confinement = Confinement(await probe_jail(find_qemu(host_arch()), self._home))
            result = await compare(first.side, second.side, confinement, report)
        return complete(result, first, second)

    def _resolve(self, reference: str) -> Subject:
        """Find what a reference means: "web", or "machine:web" if other things have the same name."""
        kind, colon, rest = reference.partition(":")
        if colon and rest and kind in _KINDS:
            found = self._of_kind(kind, rest)
            if found is None:
                raise NotFound(
                    f"no {kind} is called {rest[:80]!r}", hint=f"bough {_LISTS[kind]} shows all", kind=kind
                )
            return found
        every = [found for kind in _KINDS if (found := self._of_kind(kind, reference)) is not None]
        exact = [found for found in every if reference in (found.name, found.id)] or every
        if not exact:
            raise NotFound(
                f"no machine, snapshot or image is called {reference[:80]!r}",
                hint="bough list, bough snapshot list and bough image list show them",
                name=reference[:80],
            )
        if len(exact) > 1:
            names = " and ".join(str(found) for found in exact)
            raise Conflict(
                f"{reference[:80]!r} is ambiguous: {names} match",
                hint=f"say which: {exact[0].kind}:{reference[:80]}",
            )
        return exact[0]

    def _of_kind(self, kind: str, reference: str) -> Subject | None:
        try:
            if kind == "machine":
                return Subject("machine", self._inventory.find(reference))
            if kind == "snapshot":
                return Subject("snapshot", self._keeper.tree.store.resolve(reference))
            return Subject("image", self._store.resolve(reference))
        except NotFound:
            return None

    def _base_of(self, subject: Subject) -> Subject:
        """Return the snapshot that a machine was forked from, or else its image."""
        if isinstance(subject.found, ImageManifest):
            raise InvalidInput(
                f"{subject} has no earlier state to compare with", hint="name two: bough diff BEFORE AFTER"
            )
        snapshots = self._keeper.tree.store
        digest = subject.found.image_digest if isinstance(subject.found, SnapshotManifest) else ""
        if isinstance(subject.found, Machine):
            record = subject.found.record
            if record.forked_from is not None and snapshots.has(record.forked_from):
                return Subject("snapshot", snapshots.get(record.forked_from))
            digest = record.image_digest
        try:
            return Subject("image", self._store.resolve(digest))
        except NotFound:
            raise NotFound(
                f"the image of {subject} is not here any more",
                hint="name what to compare with: bough diff BEFORE AFTER",
                kind="image",
            ) from None

    @asynccontextmanager
    async def _view(self, subject: Subject, both_run: bool, report: Report) -> AsyncIterator[View]:
        """Provide disks that do not change in the block.

        A running machine is seen through a snapshot of its disks, which is deleted afterwards.
        """
        found = subject.found
        if isinstance(found, ImageManifest):
            digests = (found.digest, *found.disks)
            yield View(subject, [(self._store.path(digest),) for digest in digests])
        elif isinstance(found, SnapshotManifest):
            async with self._snapshot_view(subject, found, report) as view:
                yield view
        elif found.state in LIVE:
            async with self._live_view(subject, found, both_run, report) as view:
                yield view
        else:
            async with found.operation("being compared", *_AT_REST):
                disks = [disk_chain(disk, found.paths, self._home) for disk in found.record.disks]
                suspended = found.state is State.SUSPENDED
                yield View(subject, disks, notes=(_NOT_WRITTEN,) if suspended else ())

    @asynccontextmanager
    async def _snapshot_view(
        self, subject: Subject, manifest: SnapshotManifest, report: Report
    ) -> AsyncIterator[View]:
        async with contextlib.AsyncExitStack() as used:
            used.enter_context(self._keeper.used_in_background(manifest))
            taken = manifest
            if manifest.memory is not None:
                with contextlib.suppress(BoughError):
                    taken = await used.enter_async_context(self._snapshot_disks.complete(manifest, report))
            yield View(subject, self._layers(taken), notes=_notes_of(taken))

    @asynccontextmanager
    async def _live_view(
        self, subject: Subject, machine: Machine, both_run: bool, report: Report
    ) -> AsyncIterator[View]:
        live, notes = None, []
        if subject.runs:
            try:
                live = await read_live_values(machine, settings=both_run)
            except BoughError as error:
                notes.append(f"no live values: {error.message}")
        manifest = await self._keeper.take(machine, memory=False, keep=False, report=report)
        with self._keeper.of_source(machine, manifest):
            notes += _notes_of(manifest)
            yield View(subject, self._layers(manifest), live, tuple(notes))

    def _layers(self, manifest: SnapshotManifest) -> list[tuple[Path, ...]]:
        return [tuple(self._home.root / layer for layer in disk.layers) for disk in manifest.disks]


_LISTS = {"machine": "list", "snapshot": "snapshot list", "image": "image list"}
_NOT_WRITTEN = "what the guest had not yet written to its disk at that moment is not compared"


def _notes_of(manifest: SnapshotManifest) -> tuple[str, ...]:
    return (_NOT_WRITTEN,) if manifest.consistency in ("memory", "crash") else ()


def complete(result: dict[str, Any], before: View, after: View) -> dict[str, Any]:
    """Add what the program does not know: the names of both sides, and the values of running guests."""
    systems = result.pop("systems", {})
    one, other = before.live, after.live
    notes = [
        f"{side}: {note}" for side, view in (("before", before), ("after", after)) for note in view.notes
    ]
    if before.subject.arch != after.subject.arch:
        notes.append(
            f"the processors differ ({before.subject.arch}, {after.subject.arch}): so do all programs"
        )
    live_sysctls = compare_values(one.sysctls, other.sysctls) if one and other else None
    return {
        "before": {**systems.get("before", {}), **before.describe()},
        "after": {**systems.get("after", {}), **after.describe()},
        **result,
        "live_sysctls": live_sysctls,
        "ports": {"before": one.ports if one else None, "after": other.ports if other else None},
        "notes": [*notes, *result.get("notes", [])],
    }
