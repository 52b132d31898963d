"""Write a machine or snapshot for use elsewhere: as a bundle, or as disks for other hypervisors."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from bough.bundle import write_bundle
from bough.errors import BoughError, InvalidInput, NotFound
from bough.images.confined import Confinement, find_program, run_confined
from bough.images.note import ExportNote, write_note
from bough.images.store import ImageStore
from bough.machines.disks.creation import disk_chain
from bough.machines.machine import Machine
from bough.machines.record import agent_port_of, disk_bus_of
from bough.machines.saved_state import SavedState
from bough.paths import Home
from bough.progress import Progress, Report
from bough.qemu.binary import find_qemu
from bough.qemu.jail_probe import probe_jail
from bough.snapshots.bundle_manifest import BundleManifest
from bough.snapshots.bundle_reading import remove_work
from bough.snapshots.bundle_writing import Subject, describe, flatten_disks, read_parts
from bough.snapshots.ovf import write_ova
from bough.snapshots.store import SnapshotDisk, SnapshotManifest, SnapshotStore
from bough.snapshots.suspend import load_suspended
from bough.version import __version__

Format = Literal["bough", "qcow2", "ova"]
_READ_BYTES = 1 << 20


def snapshot_subject(
    manifest: SnapshotManifest, store: SnapshotStore, saved: SavedState | None, accelerator: str | None
) -> Subject:
    paths = [tuple(store.home.root / layer for layer in disk.layers) for disk in manifest.disks]
    disks = [(layers[0], layers[1:]) for layers in paths]
    agent_disk = _agent_disk(manifest, store.home)
    return Subject(manifest, disks, store.paths(manifest.id).disks, saved, accelerator, agent_disk)


def _agent_disk(manifest: SnapshotManifest, home: Home) -> Path | None:
    digest = manifest.agent_disk
    return None if digest is None else home.agent_disk(manifest.hardware.arch, digest)


async def suspended_subject(machine: Machine, home: Home, *, disks_only: bool) -> Subject:
    """Return the subject for the export of a suspended machine.

    The caller holds the machine's operation.

    Args:
        disks_only: leave out the memory of a suspended machine.

    Raises:
        WrongState, MachineFailed: the machine is not suspended, or the memory cannot be read.
    """
    record = machine.record
    saved = None if disks_only else await load_suspended(record, machine.paths)
    manifest = SnapshotManifest(
        id=record.id,
        state="layers",
        machine=record.id,
        machine_name=record.name,
        consistency="crash" if disks_only else "memory",
        spec=record.spec,
        image_digest=record.image_digest,
        image_agent=record.image_agent,
        agent_disk=record.agent_disk,
        container=record.container,
        program=record.program,
        hardware=record.hardware,
        domain=record.domain,
        first_boot=record.first_boot,
        media=record.media,
        disks=tuple(
            SnapshotDisk(size_bytes=disk.size_bytes, layers=(disk.file, *disk.layers))
            for disk in record.disks
        ),
    )
    chains = [disk_chain(disk, machine.paths, home) for disk in record.disks]
    disks = [(chain[0], chain[1:]) for chain in chains]
    accelerator = record.suspended.accelerator if record.suspended else None
    agent_disk, uid = _agent_disk(manifest, home), record.hardware.uid
    return Subject(manifest, disks, machine.paths.disks, saved, accelerator, agent_disk, uid)


@dataclass(frozen=True)
class Flat:
    """A machine to export, with its disks as raw files below `work`."""

    subject: Subject
    manifest: BundleManifest
    disks: list[Path]
    image: Path | None
    work: Path
    confinement: Confinement

    def parts(self, report: Report) -> Iterator[tuple[int, Iterable[tuple[int, bytes]]]]:
        """Yield number and content of each part, for a thread. The running loop hears the name of each."""
        loop = asyncio.get_running_loop()

        def tell(part: str) -> None:
            loop.call_soon_threadsafe(report, Progress(f"writing {part}"))

        return read_parts(self.subject, self.manifest, self.disks, self.image, tell)


@asynccontextmanager
async def flattened(
    subject: Subject, images: ImageStore, *, thin: bool, report: Report
) -> AsyncIterator[Flat]:
    """Provide the machine for an export. The files are removed at the end of the block.

    Args:
        thin: leave out the content of the image; the other host must have the image.

    Raises:
        Conflict: the machine cannot be exported.
        NotFound: the image is not here. NoSpace, HostLacks
    """
    digest = subject.manifest.image_digest
    image = images.path(images.resolve(digest).digest) if thin else None
    manifest = describe(subject, image=digest if thin else None, version=__version__)
    work = images.home.incoming / f"export-{secrets.token_hex(6)}"
    work.mkdir(mode=0o711)
    try:
        jail = await probe_jail(find_qemu(subject.manifest.hardware.arch), images.home)
        confinement = Confinement(jail) if subject.uid is None else Confinement(jail, subject.uid)
        report(Progress("reading the disks"))
        disks = await flatten_disks(subject, work, confinement)
        yield Flat(subject, manifest, disks, image, work, confinement)
    finally:
        await remove_work(work)


@asynccontextmanager
async def exported(
    subject: Subject, images: ImageStore, *, format: Format, thin: bool, report: Report
) -> AsyncIterator[Iterator[bytes]]:
    """Provide the export as an iterator of bytes. Each step does blocking work: take the pieces in a thread.

    Args:
        thin: see `flattened`.

    Raises:
        InvalidInput: the machine cannot be exported in this format; and as `flattened`.
    """
    async with flattened(subject, images, thin=thin, report=report) as flat:
        if format == "bough":
            yield write_bundle(flat.manifest.model_dump(mode="json"), flat.parts(report))
        elif format == "qcow2":
            yield await _as_qcow2(flat, images)
        else:
            yield await _as_ova(flat, images, report)


async def _as_qcow2(flat: Flat, images: ImageStore) -> Iterator[bytes]:
    if len(flat.disks) != 1:
        raise InvalidInput(
            f"the machine has {len(flat.disks)} disks, but a qcow2 file holds one",
            hint="export to an .ova file",
        )
    target = flat.work / "disk.qcow2"
    await _convert(flat.disks[0], target, flat.confinement, ["-c", "-O", "qcow2"])
    await asyncio.to_thread(write_note, target, _note(flat.subject.manifest, images))
    return _read_file(target)


async def _as_ova(flat: Flat, images: ImageStore, report: Report) -> Iterator[bytes]:
    made = []
    for number, disk in enumerate(flat.disks):
        report(Progress(f"converting disk {number}"))
        target = flat.work / f"{number}.vmdk"
        await _convert(disk, target, flat.confinement, ["-O", "vmdk", "-o", "subformat=streamOptimized"])
        made.append(target)
    report(Progress("writing the OVA"))
    manifest = flat.subject.manifest
    return write_ova(manifest, made, _note(manifest, images))


def _note(manifest: SnapshotManifest, images: ImageStore) -> ExportNote:
    """Return the note by which `bough import` recognises an exported disk."""
    note = ExportNote.model_validate(
        {
            "disks": len(manifest.disks),
            "agent": manifest.image_agent,
            "agent_disk": manifest.agent_disk is not None,
            "disk_bus": disk_bus_of(manifest.spec, manifest.hardware),
            "nic_model": next((nic.model for nic in manifest.hardware.nics), manifest.hardware.nic_model),
            "agent_port": agent_port_of(manifest.spec, manifest.hardware),
        }
    )
    with contextlib.suppress(NotFound, ValidationError):
        image = images.resolve(manifest.image_digest)
        return ExportNote.model_validate({**note.model_dump(), "os": image.os, "version": image.version})
    return note


async def _convert(source: Path, target: Path, confinement: Confinement, options: list[str]) -> None:
    target.touch(mode=0o600)
    for path in (source, target):
        confinement.give(path)
    words = [find_program("qemu-img"), "convert", "-f", "raw", *options, str(source), str(target)]
    done = await run_confined(confinement, words, read_only=(source,), writable=(target,))
    if done.status != 0:
        raise BoughError(f"qemu-img could not convert a disk: {done.output[-500:]}")
    confinement.take_back(target)


def _read_file(path: Path) -> Iterator[bytes]:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        while data := os.read(descriptor, _READ_BYTES):
            yield data
    finally:
        os.close(descriptor)
