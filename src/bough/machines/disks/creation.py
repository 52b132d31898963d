"""The disks of a machine: a qcow2 overlay on its image, and empty qcow2 files beside the overlay."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

from bough.errors import BoughError, HostLacks, InvalidSpec, NoSpace
from bough.images.overlays import layer_format
from bough.images.store import ImageManifest
from bough.machines.record import MachineDisk, MachineRecord
from bough.paths import Home, MachinePaths
from bough.qemu.subprocesses import end_subprocess, start_subprocess
from bough.storage import sync_directory
from bough.units import format_size


async def create_disks(
    made: MachinePaths, record: MachineRecord, image: ImageManifest, home: Home
) -> list[MachineDisk]:
    """Create the disks below `made`. The caller moves that directory to its final place afterwards.

    Raises:
        InvalidSpec: the requested root disk is smaller than the image's.
        NoSpace: the host's disk is full.
        HostLacks: qemu-img is missing.
    """
    size = record.spec.disk or image.size_bytes
    if record.media.root == "image" and size < image.size_bytes:
        message = (
            f"{format_size(size)} is less than the {format_size(image.size_bytes)} of {record.spec.image}"
        )
        hint = "leave it out to take the image's size"
        problem = {"place": "disk", "message": message, "hint": hint}
        raise InvalidSpec(f"disk: {problem['message']}", problems=[problem])
    disks = first_disks(record, home, image.size_bytes)
    for disk in disks:
        await create_disk(made.disks / disk.file, disk.size_bytes, disk.layers[0] if disk.layers else None)
    sync_directory(made.disks)
    return disks


def first_disks(record: MachineRecord, home: Home, image_bytes: int = 0) -> list[MachineDisk]:
    """Return the disks of a machine before its first snapshot."""
    spec, kind = record.spec, record.media.root
    layers = [str(home.image(record.image_digest).disk.relative_to(home.root))] if kind == "image" else []
    root = MachineDisk(file="0.qcow2", size_bytes=spec.disk or image_bytes, layers=layers)
    bases = [[str(home.image(digest).disk.relative_to(home.root))] for digest in record.media.disks]
    bases += [[] for _ in spec.disks[len(bases) :]]
    extra = (
        MachineDisk(file=f"{number}.qcow2", size_bytes=disk.size, layers=below)
        for number, (disk, below) in enumerate(zip(spec.disks, bases, strict=True), start=1)
    )
    return [*([] if kind == "none" else [root]), *extra]


def disk_chain(disk: MachineDisk, paths: MachinePaths, home: Home) -> tuple[Path, ...]:
    """Return the disk's own file and its backing files, nearest first."""
    return (paths.disks / disk.file, *(home.root / layer for layer in disk.layers))


def remove_strays(paths: MachinePaths, record: MachineRecord) -> None:
    """Remove disk files that the record does not name. An interrupted snapshot leaves such files."""
    if not record.disks or not paths.disks.is_dir():
        return
    known = {disk.file for disk in record.disks} | {disk.file for disk in record.disks_before or ()}
    for path in paths.disks.glob("*.qcow2"):
        if path.name not in known:
            path.unlink()


async def create_disk(path: Path, size_bytes: int, backing: str | None = None) -> None:
    """Create an empty disk, or an empty overlay on `backing`, a path relative to BOUGH_HOME.

    `path` is, or will be, three levels below BOUGH_HOME, like the disks of machines and snapshots. The
    backing file is named by a relative path, so that a whole BOUGH_HOME can be moved.

    Raises:
        NoSpace: the host's disk is full.
        HostLacks: qemu-img is missing.
    """
    arguments = ["create", "-q", "-f", "qcow2"]
    if backing is not None:
        # -u (no check): the relative name is valid only in the final place.
        # The format is QEMU's default: QEMU 7.2 aborts in a merge of smaller units (docs/decisions/0017).
        arguments += ["-u", "-b", f"../../../{backing}", "-F", layer_format(backing)]
    status, text = await _run_qemu_img(*arguments, str(path), str(size_bytes))
    if status != 0:
        if "No space left" in text:
            raise NoSpace(
                f"no space left for a disk at {path.parent}", hint="bough image prune may free some"
            )
        raise BoughError(f"qemu-img could not create a disk: {text}")
    path.chmod(0o600)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


async def convert_disk(source: Path, target: Path) -> None:
    """Convert the raw disk `source` to a synced qcow2 file without a backing file. Raises
    NoSpace, HostLacks.
    """
    status, text = await _run_qemu_img("convert", "-f", "raw", "-O", "qcow2", str(source), str(target))
    if status != 0:
        if "No space left" in text:
            raise NoSpace(f"no space left for a disk at {target.parent}", hint="bough image prune may help")
        raise BoughError(f"qemu-img could not write a disk: {text}")
    descriptor = os.open(target, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


async def _run_qemu_img(*arguments: str) -> tuple[int, str]:
    """Run qemu-img. Return the exit status and the end of the error output. Raises HostLacks: qemu-img is
    missing.
    """
    program = shutil.which("qemu-img")
    if program is None:
        raise HostLacks("qemu-img is not installed", hint="bough doctor tells the command that installs it")
    process = await start_subprocess(
        program,
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        _, stderr = await process.communicate()
    finally:
        await end_subprocess(process)
    return process.returncode or 0, stderr.decode(errors="replace").strip()[-1000:]


def read_disk_usage(paths: MachinePaths) -> int:
    """Return the bytes that the machine's own disks occupy on the host."""
    try:
        with os.scandir(paths.disks) as entries:
            return sum(entry.stat(follow_symlinks=False).st_blocks * 512 for entry in entries)
    except FileNotFoundError:
        return 0
