"""The disks of machines: does each chain lead to where it should, and is every qcow2 consistent.

A machine that runs changes its disks, so they are checked only while it does not: `hold` keeps it from
being started meanwhile. The files are a hostile QEMU's: what a header names is never opened from here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path

from bough.audit.files import disk_files
from bough.audit.finding import Finding, Repair, Skipped
from bough.errors import BoughError, Conflict, HostLacks, NotFound
from bough.images.build import verify_image
from bough.images.confined import Confinement
from bough.images.overlays import check_disk, read_backing
from bough.images.store import ImageManifest
from bough.machines.record import MachineRecord
from bough.paths import Home
from bough.qemu.jail import Jail

_MOST_LAYERS = 200

Hold = Callable[[str], AbstractAsyncContextManager[None]]


async def audit_disks(
    record: MachineRecord, home: Home, hold: Hold, jail: Jail, *, repair: bool
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
                    findings += await _check(disk, record, jail, repair=repair)
    except Conflict:
        return findings, [Skipped(f"disks of {record.name}", "the machine is in use; stop it first")]
    except NotFound:
        return [], []  # it was deleted meanwhile, and what was missing of it was on its way out
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
            path = read_backing(path) if path is not None else None
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


def _damaged(disk: Path, record: MachineRecord, why: str) -> Finding:
    return Finding(
        "disk-damaged",
        disk,
        f"{disk.name} of machine '{record.name}': {why}",
        f"copy {disk} somewhere first; then `qemu-img check -r all` on it, or put it back from a backup",
        machine=record.id,
    )


# -- qemu-img -------------------------------------------------------------------------------------


async def _check(disk: Path, record: MachineRecord, jail: Jail, *, repair: bool) -> list[Finding]:
    confinement = Confinement(jail, record.hardware.uid)
    confinement.give(disk)  # one that has never run is the service's still
    try:
        found = await check_disk(disk, confinement)
    except HostLacks:
        raise
    except BoughError as error:
        return [_damaged(disk, record, error.message)]
    if found.status == 0:
        return []
    if found.status != 3:
        corruptions = found.report.get("corruptions", 0)
        why = f"qemu-img check finds {corruptions} corruptions" if corruptions else found.why or "it fails"
        return [_damaged(disk, record, why)]
    leaks = found.report.get("leaks", "?")
    leaked = Finding(
        "disk-leaks",
        disk,
        f"{disk.name} of machine '{record.name}' has {leaks} clusters that nothing uses",
        "nothing is lost, it only takes space: qemu-img check -r leaks (--repair does)",
        Repair.LEAKS,
        machine=record.id,
        harmless=True,
    )
    if not repair:
        return [leaked]
    mended = await check_disk(disk, confinement, repair=True)
    if mended.status == 0:
        return [replace(leaked, repaired="they are given back")]
    return [replace(leaked, error=mended.why or f"qemu-img ended with {mended.status}")]
