"""The disks of machines: does each chain lead to where it should, and is every qcow2 consistent.

A machine that runs changes its disks, so they are checked only while it does not: `hold` keeps it from
being started meanwhile. The files are a hostile QEMU's: what a header names is never opened from here.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import struct
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path

from bough.audit.files import disk_files
from bough.audit.finding import Finding, Repair, Skipped
from bough.errors import BoughError, Conflict, HostLacks
from bough.images.build import verify_image
from bough.images.store import ImageManifest
from bough.machines.record import MachineRecord
from bough.paths import Home

#: qemu-img check of a disk of some TiB takes minutes; of one that a guest built to be slow, for ever.
CHECK_TIMEOUT_S = 900.0
_MAGIC = b"QFI\xfb"
_EXTERNAL_DATA = 1 << 2  # incompatible feature, docs/interop/qcow2.txt
_MOST_LAYERS = 200

Hold = Callable[[str], AbstractAsyncContextManager[None]]


async def audit_disks(
    record: MachineRecord, home: Home, hold: Hold, *, repair: bool
) -> tuple[list[Finding], list[Skipped]]:
    """Of one machine. With `repair`, clusters that nothing uses are given back."""
    paths = home.machine(record.id)
    disks = [path for name in disk_files(record) if (path := paths.disks / name).is_file()]
    findings = [finding for disk in disks for finding in _audit_chain(disk, record, home)]
    broken = {finding.path for finding in findings}
    try:
        async with hold(record.id):
            for disk in disks:
                if disk not in broken:
                    findings += await _check(disk, record, repair=repair)
    except Conflict:
        return findings, [Skipped(f"disks of {record.name}", "the machine is in use; stop it first")]
    return findings, []


async def audit_image_content(manifest: ImageManifest, home: Home) -> list[Finding]:
    """Whether the disk holds what its digest says: every bit of it."""
    disk = home.image(manifest.digest).disk
    try:
        right = await asyncio.to_thread(verify_image, manifest, disk)
    except OSError as error:
        right, why = False, str(error)
    else:
        why = "its content is not what its digest says"
    text = "put its disk back from a backup, or build it again if no machine stands on it"
    return [] if right else [Finding("image-damaged", disk, f"image {manifest.label}: {why}", text)]


# -- chains ---------------------------------------------------------------------------------------


def _audit_chain(disk: Path, record: MachineRecord, home: Home) -> list[Finding]:
    """From a disk to the image at its end, by what the headers say."""
    path: Path | None = disk
    for _ in range(_MOST_LAYERS):
        try:
            path = _read_backing(path) if path is not None else None
        except (OSError, ValueError) as error:
            return [_damaged(disk, record, f"{path}: {error}")]
        if path is None:
            return []
        if not any(path.is_relative_to(base) for base in _bases(home, record)):
            return [
                _damaged(disk, record, f"it is said to stand on {str(path)[:200]!r}, outside of the home")
            ]
        if not path.is_file():
            return [_damaged(disk, record, f"it stands on {path}, which is not there")]
    return [_damaged(disk, record, f"it stands on more than {_MOST_LAYERS} others, or on itself")]


def _bases(home: Home, record: MachineRecord) -> tuple[Path, ...]:
    return (home.images, home.snapshots, home.machine(record.id).disks)


def _read_backing(path: Path) -> Path | None:
    """What the header of a qcow2 file names as its backing file; None for none, and for a raw disk."""
    with path.open("rb") as stream:
        header = stream.read(80)
        if header[:4] != _MAGIC:
            if path.suffix == ".qcow2":
                raise ValueError("this is no qcow2 file")
            return None
        if len(header) < 80:
            raise ValueError("its header is cut off")
        version, offset, length = struct.unpack(">IQI", header[4:20])
        if version >= 3 and struct.unpack(">Q", header[72:80])[0] & _EXTERNAL_DATA:
            raise ValueError("its data is said to be in another file, which bough never does")
        if offset == 0:
            return None
        if length > 1023:
            raise ValueError("the name of its backing file is too long")
        stream.seek(offset)
        name = stream.read(length)
    if b"\0" in name or not name:
        raise ValueError("the name of its backing file is no name")
    return Path(os.path.normpath(path.parent / os.fsdecode(name)))


def _damaged(disk: Path, record: MachineRecord, why: str) -> Finding:
    return Finding(
        "disk-damaged",
        disk,
        f"{disk.name} of machine '{record.name}': {why}",
        f"copy {disk} somewhere first; then `qemu-img check -r all` on it, or put it back from a backup",
        machine=record.id,
    )


# -- qemu-img -------------------------------------------------------------------------------------


async def _check(disk: Path, record: MachineRecord, *, repair: bool) -> list[Finding]:
    status, report, stderr = await _qemu_img_check(disk)
    if status == 0:
        return []
    if status != 3:
        corruptions = report.get("corruptions", 0)
        why = f"qemu-img check finds {corruptions} corruptions" if corruptions else stderr or "it fails"
        return [_damaged(disk, record, why)]
    leaked = Finding(
        "disk-leaks",
        disk,
        f"{disk.name} of machine '{record.name}' has {report.get('leaks', '?')} clusters that nothing uses",
        "nothing is lost, it only takes space: qemu-img check -r leaks (--repair does)",
        Repair.LEAKS,
        machine=record.id,
        harmless=True,
    )
    if not repair:
        return [leaked]
    status, _, stderr = await _qemu_img_check(disk, "-r", "leaks")
    if status == 0:
        return [replace(leaked, repaired="they are given back")]
    return [replace(leaked, error=stderr or f"qemu-img ended with {status}")]


async def _qemu_img_check(disk: Path, *options: str) -> tuple[int, dict[str, int], str]:
    program = shutil.which("qemu-img")
    if program is None:
        raise HostLacks("qemu-img is not installed", hint="bough doctor tells the command that installs it")
    # "backing": null, or a header that its guest's QEMU wrote would say what is opened.
    node = {"driver": "qcow2", "backing": None, "file": {"driver": "file", "filename": str(disk)}}
    process = await asyncio.create_subprocess_exec(
        program,
        "check",
        "--output=json",
        *options,
        f"json:{json.dumps(node)}",
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(CHECK_TIMEOUT_S):
            out, err = await process.communicate()
    except BaseException as error:
        process.kill()
        await process.wait()
        if isinstance(error, TimeoutError):
            raise BoughError(f"qemu-img check of {disk} did not end within {CHECK_TIMEOUT_S:g} s") from error
        raise
    try:
        report = dict(json.loads(out))
    except ValueError:
        report = {}
    return process.returncode or 0, report, err.decode(errors="replace").strip()[-500:]
