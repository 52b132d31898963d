"""Check the disks of machines: the files of each chain, and the consistency of each qcow2 file.

A running machine changes its disks, so running machines are skipped. `hold` prevents a start during the
check. A hostile QEMU may have written the files, so bough itself never opens a file named in a header.
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
    """Check the disks of a machine. With `repair`, free unused clusters."""
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
        return [], []  # the machine was deleted meanwhile, hence the missing files
    return findings, []


async def audit_image_content(manifest: ImageManifest, home: Home) -> list[Finding]:
    """Check all of an image's disk against its digest."""
    disk = home.image(manifest.digest).disk
    try:
        right = await asyncio.to_thread(verify_image, manifest, disk)
    except OSError as error:
        right, why = False, str(error)
    else:
        why = "its content does not match its digest"
    text = "restore its disk from a backup; or build it again, if no machine uses it"
    return [] if right else [Finding("image-damaged", disk, f"image {manifest.label}: {why}", text)]


# -- chains ---------------------------------------------------------------------------------------


def _audit_chain(disk: Path, record: MachineRecord, home: Home) -> list[Finding]:
    """Follow the headers from a disk to the image at the end of its chain."""
    path: Path | None = disk
    for _ in range(_MOST_LAYERS):
        try:
            path = read_backing(path) if path is not None else None
        except (OSError, ValueError) as error:
            return [_damaged(disk, record, f"{path}: {error}")]
        if path is None:
            return []
        if not any(path.is_relative_to(base) for base in _bases(home, record)):
            return [_damaged(disk, record, f"its backing file {str(path)[:200]!r} is outside of BOUGH_HOME")]
        if not path.is_file():
            return [_damaged(disk, record, f"its backing file {path} is missing")]
    return [_damaged(disk, record, f"it has more than {_MOST_LAYERS} backing files, or its chain is a loop")]


def _bases(home: Home, record: MachineRecord) -> tuple[Path, ...]:
    return (home.images, home.snapshots, home.machine(record.id).disks)


def _damaged(disk: Path, record: MachineRecord, why: str) -> Finding:
    return Finding(
        "disk-damaged",
        disk,
        f"{disk.name} of machine '{record.name}': {why}",
        f"first copy {disk}; then run `qemu-img check -r all` on it, or restore it from a backup",
        machine=record.id,
    )


# -- qemu-img -------------------------------------------------------------------------------------


async def _check(disk: Path, record: MachineRecord, jail: Jail, *, repair: bool) -> list[Finding]:
    confinement = Confinement(jail, record.hardware.uid)
    confinement.give(disk)  # the service still owns a disk that has never run
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
        "no data is lost; free the space: qemu-img check -r leaks (--repair does)",
        Repair.LEAKS,
        machine=record.id,
        harmless=True,
    )
    if not repair:
        return [leaked]
    mended = await check_disk(disk, confinement, repair=True)
    if mended.status == 0:
        return [replace(leaked, repaired="the clusters are free")]
    return [replace(leaked, error=mended.why or f"qemu-img ended with {mended.status}")]
