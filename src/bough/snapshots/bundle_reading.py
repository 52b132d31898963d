"""Read the parts of a bundle, and make a snapshot of the parts. bough/bundle.py defines the format of the
file.

Disks arrive as bytes, never as qcow2. Only a jailed QEMU reads the memory and devices.
"""

from __future__ import annotations

import asyncio
import mmap
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bough.bundle import Piece
from bough.errors import BadBundle, NotFound
from bough.images.convert import check_space
from bough.images.imports import copy_sparse
from bough.machines.disks.creation import convert_disk, create_disk
from bough.machines.record import Hardware
from bough.machines.saved_state import SavedState
from bough.paths import Home, SnapshotPaths
from bough.qemu.ram import MemoryFile
from bough.qemu.tpm import create_tpm_state
from bough.snapshots.bundle_manifest import COMPANIONS, BundleManifest
from bough.snapshots.store import SnapshotDisk, SnapshotManifest, new_snapshot_id
from bough.spec import MachineSpec
from bough.storage import no_space_is_told, sync_directory
from bough.tasks import finish
from bough.units import MIB


@dataclass
class Taken:
    """The parts of a bundle, as read.

    Attributes:
        disks: raw files.
        saved: None without memory.
        companions: content of the parts in COMPANIONS and of "agent", if the bundle has them.
    """

    disks: list[Path]
    saved: SavedState | None
    companions: dict[str, bytes]


def take_parts(
    pieces: Iterator[Piece],
    manifest: BundleManifest,
    work: Path,
    image: Path | None,
    tell: Callable[[float], None],
) -> Taken:
    """Read all parts to `work`. Blocking. After an error, do not use the files.

    Args:
        pieces: the content of all parts; raises an error if the content is not as promised.
        image: disk of the image that a disk of the bundle differs from; None if no disk needs an image.
        tell: called with the fraction that was read, 0 to 1.

    Raises:
        BadBundle, NoSpace
        NotFound: a disk needs an image, and `image` is None.
    """
    with no_space_is_told("the bundle", work):
        taken = _Taking(manifest, work, image)
        try:
            sizes = [part.size_bytes for part in manifest.parts]
            total = sum(sizes) or 1
            for piece in pieces:
                taken.take(piece)
                tell((sum(sizes[: piece.part]) + piece.offset) / total)
            return taken.finish()
        finally:
            taken.close()


class _Taking:
    def __init__(self, manifest: BundleManifest, work: Path, image: Path | None) -> None:
        self._manifest = manifest
        self._files: dict[int, int] = {}
        self._small: dict[int, bytearray] = {}
        self._memory: MemoryFile | None = None
        self._disks = []
        self._told = 0
        self._work = work
        for number, part in enumerate(manifest.parts):
            if part.name.startswith("disk"):
                path = work / f"{part.name}.raw"
                if part.image is not None:
                    if image is None:
                        raise NotFound("the image that the bundle needs is missing", kind="image")
                    copy_sparse(image, path)
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                self._files[number] = descriptor
                os.ftruncate(descriptor, part.size_bytes)
                self._disks.append(path)
            elif part.name == "memory":
                self._memory = MemoryFile(part.size_bytes)
            else:
                self._small[number] = bytearray(part.size_bytes)

    def take(self, piece: Piece) -> None:
        end = piece.offset + len(piece.data)
        if piece.part in self._files:
            os.pwrite(self._files[piece.part], piece.data, piece.offset)
        elif piece.part in self._small:
            self._small[piece.part][piece.offset : end] = piece.data
        elif self._memory is not None:
            if piece.offset % mmap.PAGESIZE or len(piece.data) % mmap.PAGESIZE:
                raise BadBundle("the bundle was altered: a piece of memory is not made of whole pages")
            self._memory.buffer[piece.offset : end] = piece.data
        self._told += len(piece.data)
        if self._told > 64 * MIB:
            self._told = 0
            check_space(self._work)

    def finish(self) -> Taken:
        for descriptor in self._files.values():
            os.fsync(descriptor)
        small = {self._manifest.parts[n].name: bytes(data) for n, data in self._small.items()}
        saved = None
        if self._memory is not None:
            template = self._memory.seal()
            self._memory = None
            its = self._manifest.accelerator
            saved = SavedState(template, small.pop("devices"), accelerator=its)
        return Taken(self._disks, saved, small)

    def close(self) -> None:
        for descriptor in self._files.values():
            os.close(descriptor)
        if self._memory is not None:
            self._memory.__exit__()


async def make_snapshot(
    taken: Taken, manifest: BundleManifest, spec: MachineSpec, hardware: Hardware, home: Home, work: Path
) -> tuple[SnapshotPaths, SnapshotManifest]:
    """Create a snapshot below `work`, for a machine to continue from.

    The caller adds the snapshot to the store.
    """
    snapshot_id = new_snapshot_id()
    made = SnapshotPaths(work / snapshot_id)
    for directory in (made.root, made.disks, made.overlays):
        directory.mkdir(mode=0o711)
    disks = []
    for number, raw in enumerate(taken.disks):
        size = manifest.parts[number].size_bytes
        own = str(home.snapshot(snapshot_id).disk(number).relative_to(home.root))
        await convert_disk(raw, made.disk(number))
        raw.unlink()
        made.disk(number).chmod(0o444)
        # The path is relative to the final place, which is as deep below BOUGH_HOME as a machine's disks.
        await create_disk(made.overlay(number), size, own)
        disks.append(SnapshotDisk(size_bytes=size, layers=(own,)))
    for name, file in COMPANIONS.items():
        if name in taken.companions:
            (made.disks / file).write_bytes(taken.companions[name])
            (made.disks / file).chmod(0o600)
    if manifest.spec.tpm and "tpm" not in taken.companions:
        create_tpm_state(made.disks)
    for directory in (made.disks, made.overlays):
        sync_directory(directory)
    return made, SnapshotManifest(
        id=snapshot_id,
        state="layers",
        machine=snapshot_id,
        machine_name=manifest.name,
        consistency=manifest.consistency,
        spec=spec,
        image_digest=manifest.image_digest,
        image_agent=manifest.image_agent,
        agent_disk=manifest.agent_disk,
        container=manifest.container,
        program=manifest.program,
        hardware=hardware,
        domain=manifest.domain,
        first_boot=manifest.first_boot,
        media=manifest.media,
        disks=tuple(disks),
    )


async def remove_work(work: Path) -> None:
    """Remove the directory completely, even if the caller is cancelled."""
    await finish(asyncio.to_thread(shutil.rmtree, work, True))
