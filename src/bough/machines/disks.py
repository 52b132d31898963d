"""The disks of a machine: a qcow2 overlay on its image, and empty qcow2 files beside it."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

from bough.errors import BoughError, HostLacks, InvalidSpec, NoSpace
from bough.images.store import ImageManifest
from bough.paths import Home, MachinePaths
from bough.spec import MachineSpec
from bough.storage import sync_directory
from bough.units import format_size


async def create_disks(
    made: MachinePaths, spec: MachineSpec, image: ImageManifest, backing: Path, home: Home
) -> None:
    """Below `made`, which is moved to its final place afterwards.

    The overlay names its backing file relative to where it will be, so that a whole BOUGH_HOME can
    be moved.

    Raises:
        InvalidSpec: the root disk is asked to be smaller than the image's.
        NoSpace, HostLacks
    """
    if image.media != "disk":  # a CD or a floppy: the disk is what a system is installed on
        if spec.disk:
            await _create_qcow2(made.disk(0), spec.disk)
        await _create_extra(made, spec)
        return
    size = spec.disk or image.size_bytes
    if size < image.size_bytes:
        message = f"{format_size(size)} is less than the {format_size(image.size_bytes)} of {spec.image}"
        hint = "leave it out to take the image's size"
        problem = {"place": "disk", "message": message, "hint": hint}
        raise InvalidSpec(f"disk: {problem['message']}", problems=[problem])
    final = home.machine(made.root.name)
    relative = os.path.relpath(backing, final.disks)
    await _create_qcow2(made.disk(0), size, backing=relative, backing_format="raw")
    await _create_extra(made, spec)


async def _create_extra(made: MachinePaths, spec: MachineSpec) -> None:
    for number, disk in enumerate(spec.disks, start=1):
        await _create_qcow2(made.disk(number), disk.size)
    sync_directory(made.disks)


async def _create_qcow2(
    path: Path, size_bytes: int, *, backing: str | None = None, backing_format: str = ""
) -> None:
    program = shutil.which("qemu-img")
    if program is None:
        raise HostLacks("qemu-img is not installed", hint="bough doctor tells the command that installs it")
    arguments = [program, "create", "-q", "-f", "qcow2"]
    if backing is not None:
        # -u: the relative name is right only in the final place.
        arguments += ["-u", "-b", backing, "-F", backing_format]
    process = await asyncio.create_subprocess_exec(
        *arguments,
        str(path),
        str(size_bytes),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        _, stderr = await process.communicate()
    except asyncio.CancelledError:
        process.kill()
        await process.wait()
        raise
    if process.returncode != 0:
        text = stderr.decode(errors="replace").strip()[-1000:]
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


def read_disk_usage(paths: MachinePaths) -> int:
    """Bytes that the machine's own disks really take on the host."""
    try:
        with os.scandir(paths.disks) as entries:
            return sum(entry.stat(follow_symlinks=False).st_blocks * 512 for entry in entries)
    except FileNotFoundError:
        return 0
