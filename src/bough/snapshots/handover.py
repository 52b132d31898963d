"""The content of a bundle, written and read. bough/bundle.py defines the format of the file.

Disks travel as bytes, never as qcow2. So bough never reads data from another host in a format that could name
a file. Only a QEMU in its jail reads the memory and devices. Before an import makes anything, bough checks
the manifest against this host like a user's spec.
"""

from __future__ import annotations

import asyncio
import mmap
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bough.bundle import MOST_CHUNK_BYTES, Piece, Source, read_pieces
from bough.errors import BadBundle, BoughError, Conflict, NotFound
from bough.images.confined import Confinement, find_program, run_confined
from bough.images.convert import check_space
from bough.images.formats import MOST_BYTES
from bough.images.imports import copy_sparse
from bough.images.overlays import render_chain
from bough.machines.disks.creation import convert_disk, create_disk
from bough.machines.media import Media
from bough.machines.plan import FIRMWARE_VARIABLES
from bough.machines.record import FirstBoot, Hardware, Nic, now
from bough.machines.saved_state import SavedState
from bough.machines.seed import SEED
from bough.paths import Home, SnapshotPaths
from bough.qemu.arch import ARCHITECTURES
from bough.qemu.choice import choose_machine_type
from bough.qemu.probe import Accelerator, QemuFacts
from bough.qemu.ram import MemoryFile
from bough.snapshots.memory import read_template
from bough.snapshots.store import SnapshotDisk, SnapshotManifest, new_snapshot_id
from bough.spec import MachineSpec
from bough.spec.nic import MOST_NICS, Model
from bough.spec.settings import SETTINGS, entry_of
from bough.storage import no_space_is_told, sync_directory
from bough.tasks import finish
from bough.units import MIB

_BLOCK = 64 * 1024
_MOST_PART = 64 * MIB
_PART = re.compile(r"disk([0-9]|1[0-6])|variables|seed|memory|devices")
#: No group address.
_MAC = re.compile(r"[0-9a-f][02468ace](:[0-9a-f]{2}){5}")
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+,=-]{0,400}")


class _Told(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Part(_Told):
    """A part of a bundle.

    Attributes:
        image: digest of an image; the part holds only the difference from this image. None: the whole disk.
    """

    name: str
    size_bytes: int = Field(gt=0, le=MOST_BYTES)
    image: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")


class BundleManifest(_Told):
    """The description of the machine in a bundle.

    Attributes:
        parts: in the order of their numbers.
        accelerator: of the QEMU that the memory was taken from; None without memory.
    """

    version: int = 1
    created: str = Field(max_length=64)
    bough: str = Field(max_length=64)
    name: str = Field(max_length=63)
    consistency: Literal["memory", "stopped", "frozen", "crash"]
    spec: MachineSpec
    hardware: Hardware
    image_digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    image_agent: bool
    domain: str | None = Field(default=None, max_length=63, pattern=r"^[a-z0-9.-]+$")
    first_boot: FirstBoot
    media: Media
    parts: tuple[Part, ...] = Field(max_length=32)
    accelerator: Literal["tcg", "kvm"] | None = None

    def number(self, name: str) -> int | None:
        return next((n for n, part in enumerate(self.parts) if part.name == name), None)

    @property
    def disks(self) -> list[Part]:
        return [part for part in self.parts if part.name.startswith("disk")]


@dataclass(frozen=True)
class Subject:
    """The source of an export: a snapshot, or a machine that does not run.

    Attributes:
        disks: the top file of each disk, and its backing files, nearest first.
        companions: directory of the firmware's variables and the seed.
        uid: owner of the files, if a jailed QEMU wrote them.
    """

    manifest: SnapshotManifest
    disks: list[tuple[Path, tuple[Path, ...]]]
    companions: Path
    saved: SavedState | None
    accelerator: str | None
    uid: int | None = None


# -- writing ------------------------------------------------------------------------------------------


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
        Conflict: the machine needs a file of this host.
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
    for name, file in (("variables", FIRMWARE_VARIABLES), ("seed", SEED)):
        path = subject.companions / file
        if path.is_file():
            parts.append(Part(name=name, size_bytes=path.stat().st_size))
    if subject.saved is not None:
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
        domain=manifest.domain,
        first_boot=manifest.first_boot,
        media=manifest.media.model_copy(update={"disks": []}),  # a bundle holds whole disks
        parts=tuple(parts),
        accelerator=subject.accelerator if subject.saved is not None else None,  # type: ignore[arg-type]
    )


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
            yield number, read_difference(path, image) if part.image and image else _data_of(path)
        elif part.name in ("variables", "seed"):
            file = FIRMWARE_VARIABLES if part.name == "variables" else SEED
            yield number, _data_of(subject.companions / file)
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


def _data_of(path: Path) -> Iterator[tuple[int, bytes]]:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size, offset = os.fstat(descriptor).st_size, 0
        while offset < size:
            try:
                offset = os.lseek(descriptor, offset, os.SEEK_DATA)
            except OSError:  # ENXIO: only a hole is left
                return
            end = os.lseek(descriptor, offset, os.SEEK_HOLE)
            while offset < end:
                data = os.pread(descriptor, min(MOST_CHUNK_BYTES, end - offset), offset)
                if not data:
                    return
                yield offset, data
                offset += len(data)
    finally:
        os.close(descriptor)


def read_difference(path: Path, image: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the blocks and offsets where the disk differs from the image.

    This includes blocks that are empty on the disk but not in the image.
    """
    with path.open("rb") as ours, image.open("rb") as theirs:
        size, base = os.fstat(ours.fileno()).st_size, os.fstat(theirs.fileno()).st_size
        for start in range(0, size, MOST_CHUNK_BYTES):
            length = min(MOST_CHUNK_BYTES, size - start)
            if _is_hole(ours.fileno(), start, length) and _is_hole(theirs.fileno(), start, length):
                # Skip holes, most of a disk: for each page that is read from a hole, the kernel allocates
                # one.
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


# -- reading ------------------------------------------------------------------------------------------


def parse_manifest(data: dict[str, Any]) -> BundleManifest:
    """Parse the manifest of a bundle, and make all checks that do not depend on the host.

    The table of settings says which settings a bundle may bring. Autostart and mounts stay behind. Ports
    listen on the loopback. A setting that names a file of the exporting host is refused.

    Raises:
        BadBundle
    """
    spec = data.get("spec")
    if isinstance(spec, dict):
        data = {**data, "spec": _travelled(spec)}
    try:
        manifest = BundleManifest.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])[:100]
        raise BadBundle(f"the manifest of the bundle is not valid: {place}: {first['msg'][:200]}") from error
    except RecursionError:
        raise BadBundle("the manifest of the bundle is not valid") from None
    _check_hardware(manifest.hardware)
    _check_parts(manifest)
    return manifest


def _travelled(spec: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a bundle's spec that may be imported. Raises BadBundle."""
    arrived: dict[str, Any] = {}
    for name, value in spec.items():
        kind = entry_of(name).bundle
        if kind == "refused" and value is not None:
            known = name in SETTINGS
            why = "names a file of the exporting host" if known else "is unknown to this version of bough"
            raise BadBundle(f"the machine in the bundle has the setting {name[:40]!r}, which {why}")
        if kind == "kept":
            arrived[name] = value
        elif kind == "here":
            ports = value if isinstance(value, list) else ()
            arrived[name] = [_on_loopback(one) for one in ports if isinstance(one, dict)]
    return arrived


def _on_loopback(port: dict[str, Any]) -> dict[str, Any]:
    return {**port, "host": "127.0.0.1"}


def _check_hardware(hardware: Hardware) -> None:
    right = (
        hardware.arch in ARCHITECTURES
        and hardware.firmware in ("bios", "uefi")
        and _WORD.fullmatch(hardware.machine_type)
        and _WORD.fullmatch(hardware.cpu_model)
        and _are_cards(hardware.nics)
    )
    try:
        ids = [str(uuid.UUID(text)) == text for text in (hardware.uuid, hardware.vmgenid)]
    except ValueError:
        ids = [False]
    if not right or not all(ids):
        raise BadBundle("the bundle describes hardware that bough does not support")


def _are_cards(nics: list[Nic]) -> bool:
    """Return whether the cards have distinct addresses and places, and models that bough knows."""
    places = [nic.place for nic in nics]
    return (
        all(_MAC.fullmatch(nic.mac) and nic.model in get_args(Model) for nic in nics)
        and len({nic.mac for nic in nics}) == len(set(places)) == len(nics)
        and all(0 <= place < MOST_NICS for place in places)
    )


def _check_parts(manifest: BundleManifest) -> None:
    names = [part.name for part in manifest.parts]
    count = len(manifest.spec.disks) + (manifest.media.root != "none")
    wanted = [f"disk{number}" for number in range(count)]
    sizes = {part.name: part.size_bytes for part in manifest.parts}
    small = all(sizes.get(name, 0) <= _MOST_PART for name in ("variables", "seed", "devices"))
    memory = sizes.get("memory", manifest.spec.memory)
    if (
        len(manifest.hardware.nics) != len(manifest.spec.network_cards)
        or len(set(names)) != len(names)
        or not all(_PART.fullmatch(name) for name in names)
        or names[:count] != wanted
        or len(manifest.disks) != count
        or not small
        or memory != manifest.spec.memory
        or ("memory" in sizes) != ("devices" in sizes)
        or ("memory" in sizes) != (manifest.accelerator is not None)
        or (manifest.hardware.firmware == "uefi") != ("variables" in sizes)
        or manifest.media.seed != ("seed" in sizes)
        or any(size % 512 for name, size in sizes.items() if name.startswith("disk"))
        or not all(re.fullmatch(r"[0-9a-f]{64}", digest) for digest in manifest.media.digests)
        or any(part.image not in (None, manifest.image_digest) for part in manifest.parts)
    ):
        raise BadBundle("the parts of the bundle do not match its machine")


def check_here(
    manifest: BundleManifest,
    facts: QemuFacts,
    accelerators: dict[str, Accelerator],
    *,
    cold: bool,
) -> tuple[MachineSpec, Hardware]:
    """Return the spec and the hardware of the machine on this host.

    Args:
        cold: ignore the memory; the machine boots.

    Raises:
        BadBundle: this host cannot continue from the memory; the hint says what works.
    """
    spec, hardware = manifest.spec, manifest.hardware
    is_known = _is_known(hardware, facts)
    if cold or manifest.accelerator is None:
        if not is_known:
            machine_type = choose_machine_type("auto", facts, hardware.arch)
            hardware = hardware.model_copy(update={"machine_type": machine_type})
        return spec, hardware
    found = accelerators.get(manifest.accelerator)
    why = None
    if found is None or not found.usable:
        why = f"it ran on {manifest.accelerator}, which does not work here"
    elif not is_known:
        why = f"this QEMU does not have its machine type {hardware.machine_type}"
    elif hardware.cpu_model.partition(",")[0] not in facts.cpu_models:
        why = f"this QEMU does not have its processor {hardware.cpu_model}"
    if why is not None:
        raise BadBundle(
            f"machine '{manifest.name}' cannot resume on this host: {why}",
            hint="import only its disks, and boot: --cold",
        )
    return spec.model_copy(update={"accelerator": manifest.accelerator}), hardware


def _is_known(hardware: Hardware, facts: QemuFacts) -> bool:
    try:
        return choose_machine_type(hardware.machine_type, facts, hardware.arch) == hardware.machine_type
    except BoughError:
        return False


@dataclass
class Taken:
    """The parts that were read from a bundle.

    Attributes:
        disks: raw files.
        saved: None without memory.
        companions: content of "variables" and "seed", if the bundle has them.
    """

    disks: list[Path]
    saved: SavedState | None
    companions: dict[str, bytes]


def take_parts(
    source: Source,
    digest: Any,
    manifest: BundleManifest,
    work: Path,
    image: Path | None,
    tell: Callable[[float], None],
) -> Taken:
    """Read all parts to `work`. Blocking. After an error, do not use the files.

    Args:
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
            for piece in read_pieces(source, digest, sizes):
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
            saved = SavedState(template, small.pop("devices"))
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
    for name, file in (("variables", FIRMWARE_VARIABLES), ("seed", SEED)):
        if name in taken.companions:
            (made.disks / file).write_bytes(taken.companions[name])
            (made.disks / file).chmod(0o600)
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
        hardware=hardware,
        domain=manifest.domain,
        first_boot=manifest.first_boot,
        media=manifest.media,
        disks=tuple(disks),
    )


async def remove_work(work: Path) -> None:
    """Remove the directory completely, even if the caller is cancelled."""
    await finish(asyncio.to_thread(shutil.rmtree, work, True))
