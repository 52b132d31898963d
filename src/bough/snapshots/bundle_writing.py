"""Write the parts of a bundle. bough/bundle.py defines the format of the file.

Disks travel as bytes, never as qcow2. So bough never reads data from another host in a format that could name
a file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bough.artifacts.content import read_data
from bough.bundle import MOST_CHUNK_BYTES
from bough.errors import BoughError, Conflict
from bough.images.confined import Confinement, find_program, run_confined
from bough.images.convert import check_space
from bough.images.overlays import render_chain
from bough.machines.record import now
from bough.machines.saved_state import SavedState
from bough.snapshots.bundle_manifest import COMPANIONS, BundleManifest, Part
from bough.snapshots.memory import read_template
from bough.snapshots.store import SnapshotManifest
from bough.storage import no_space_is_told

_BLOCK = 64 * 1024


@dataclass(frozen=True)
class Subject:
    """The source of an export: a snapshot, or a machine that does not run.

    Attributes:
        disks: the top file of each disk, and its backing files, nearest first.
        companions: directory of the firmware's variables, the seed and the TPM's state.
        agent_disk: file of the agent disk that the memory knows, if any.
        uid: owner of the files, if a jailed QEMU wrote them.
    """

    manifest: SnapshotManifest
    disks: list[tuple[Path, tuple[Path, ...]]]
    companions: Path
    saved: SavedState | None
    accelerator: str | None
    agent_disk: Path | None = None
    uid: int | None = None


async def flatten_disks(subject: Subject, work: Path, confinement: Confinement) -> list[Path]:
    """Write each disk to a sparse raw file below `work`, with qemu-img in the jail.

    Raises:
        BoughError: a disk is damaged.
        NoSpace, HostLacks
    """
    made = []
    for number, (top, below) in enumerate(subject.disks):
        target = work / f"{number}.raw"
        size = subject.manifest.disks[number].size_bytes
        with no_space_is_told("the export", work), target.open("xb") as stream:
            os.ftruncate(stream.fileno(), size)
        check_space(work)
        confinement.give(target)
        done = await run_confined(
            confinement,
            [
                *(find_program("qemu-img"), "convert", "-n", "--target-is-zero"),
                *("-O", "raw", render_chain((top, *below)), str(target)),
            ],
            read_only=(top, *below),
            writable=(target,),
        )
        confinement.take_back(target)
        if done.status != 0:
            raise BoughError(f"disk {number} could not be read: {done.output[-500:]}")
        made.append(target)
    return made


def describe(subject: Subject, *, image: str | None, version: str) -> BundleManifest:
    """Return the manifest of the bundle.

    Args:
        image: digest of the image that is left out of the bundle; None: the bundle contains whole disks.

    Raises:
        Conflict: the machine needs a file of this host, or its agent disk is missing.
    """
    manifest = subject.manifest
    if manifest.spec.kernel is not None:
        raise Conflict(
            f"machine '{manifest.machine_name}' boots a kernel file that only this host has",
            hint="only a machine that boots the kernel on its own disk can be exported",
        )
    parts = [
        Part(
            name=f"disk{number}",
            size_bytes=disk.size_bytes,
            image=image if number == 0 and manifest.media.root == "image" else None,
        )
        for number, disk in enumerate(manifest.disks)
    ]
    for name, file in COMPANIONS.items():
        path = subject.companions / file
        if path.is_file() and path.stat().st_size:  # the TPM of a machine that never ran has no state
            parts.append(Part(name=name, size_bytes=path.stat().st_size))
    if subject.saved is not None:
        if subject.agent_disk is not None:
            parts.append(Part(name="agent", size_bytes=_size_of(subject.agent_disk, manifest)))
        parts.append(Part(name="memory", size_bytes=subject.saved.memory.size_bytes))
        parts.append(Part(name="devices", size_bytes=len(subject.saved.devices)))
    return BundleManifest(
        created=now(),
        bough=version,
        name=manifest.machine_name,
        consistency=manifest.consistency,
        spec=manifest.spec,
        hardware=manifest.hardware.model_copy(update={"uid": None}),
        image_digest=manifest.image_digest,
        image_agent=manifest.image_agent,
        agent_disk=manifest.agent_disk,
        container=manifest.container,
        program=manifest.program,
        domain=manifest.domain,
        first_boot=manifest.first_boot,
        media=manifest.media.model_copy(update={"disks": []}),  # a bundle holds whole disks
        parts=tuple(parts),
        accelerator=subject.accelerator if subject.saved is not None else None,  # type: ignore[arg-type]
    )


def _size_of(agent_disk: Path, manifest: SnapshotManifest) -> int:
    """Return the size of the agent disk. Raises Conflict: the file is missing."""
    try:
        return agent_disk.stat().st_size
    except FileNotFoundError:
        raise Conflict(
            f"the agent disk that the memory of machine '{manifest.machine_name}' knows is missing: "
            f"{agent_disk}",
            hint="restore the file from a backup, or export the disks alone: --disks-only",
        ) from None


def read_parts(
    subject: Subject,
    manifest: BundleManifest,
    disks: list[Path],
    image: Path | None,
    tell: Callable[[str], None],
) -> Iterator[tuple[int, Iterable[tuple[int, bytes]]]]:
    """Yield the number and content of each part, for `write_bundle`. Blocking.

    Args:
        disks: the raw files of `flatten_disks`.
        image: the disk of the image that is left out, if any.
        tell: called with the name of each part.
    """
    for number, part in enumerate(manifest.parts):
        tell(part.name)
        if part.name.startswith("disk"):
            path = disks[int(part.name[4:])]
            if part.image and image:
                yield number, read_difference(path, image)
            else:
                yield number, read_data(path, MOST_CHUNK_BYTES)
        elif part.name in COMPANIONS:
            yield number, read_data(subject.companions / COMPANIONS[part.name], MOST_CHUNK_BYTES)
        elif part.name == "agent" and subject.agent_disk is not None:
            yield number, read_data(subject.agent_disk, MOST_CHUNK_BYTES)
        elif subject.saved is not None and part.name == "memory":
            yield number, _memory_of(subject.saved)
        elif subject.saved is not None:
            yield number, _cut(0, subject.saved.devices)


def _memory_of(saved: SavedState) -> Iterator[tuple[int, bytes]]:
    for start, length in saved.memory.extents():
        for offset in range(start, start + length, MOST_CHUNK_BYTES):
            size = min(MOST_CHUNK_BYTES, start + length - offset)
            for data in read_template(saved.memory, [(offset, size)]):
                yield offset, data


def _cut(offset: int, data: bytes) -> Iterator[tuple[int, bytes]]:
    for at in range(0, len(data), MOST_CHUNK_BYTES):
        yield offset + at, data[at : at + MOST_CHUNK_BYTES]


def read_difference(path: Path, image: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the blocks and offsets where the disk differs from the image.

    Blocks that are empty on the disk but not in the image are included.
    """
    with path.open("rb") as ours, image.open("rb") as theirs:
        size, base = os.fstat(ours.fileno()).st_size, os.fstat(theirs.fileno()).st_size
        for start in range(0, size, MOST_CHUNK_BYTES):
            length = min(MOST_CHUNK_BYTES, size - start)
            if _is_hole(ours.fileno(), start, length) and _is_hole(theirs.fileno(), start, length):
                # Skip holes, most of a disk: for each page read from a hole, the kernel allocates a page.
                continue
            new = os.pread(ours.fileno(), length, start)
            old = os.pread(theirs.fileno(), length, start) if start < base else b""
            old += bytes(length - len(old))
            if new == old:
                continue
            for at in range(0, length, _BLOCK):
                if new[at : at + _BLOCK] != old[at : at + _BLOCK]:
                    yield start + at, new[at : at + _BLOCK]


def _is_hole(descriptor: int, start: int, length: int) -> bool:
    try:
        return os.lseek(descriptor, start, os.SEEK_DATA) >= start + length
    except OSError:  # ENXIO: only a hole is left
        return True
