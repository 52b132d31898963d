"""Create the overlays of a fork: copies of the snapshot's empty overlays.

A restored machine, and a machine that continues after a snapshot, get overlays in the same way. The
snapshot's empty overlays are made by machines/disks/creation.py.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from bough.machines.record import MachineDisk
from bough.paths import MachinePaths, SnapshotPaths
from bough.snapshots.store import SnapshotManifest
from bough.storage import no_space_is_told, sync_directory, sync_file


def install_overlays(
    source: SnapshotPaths,
    manifest: SnapshotManifest,
    target: MachinePaths,
    uid: int | None,
    *,
    durable: bool = True,
) -> list[MachineDisk]:
    """Create new overlays on a snapshot's disks in a machine's directory. No record names the overlays yet.

    Args:
        uid: owner of the overlays; None: the service's user.
        durable: sync the overlays to disk.

    Raises:
        NoSpace: nothing is left behind.
    """
    after: list[MachineDisk] = []
    try:
        for number, disk in enumerate(manifest.disks):
            name = f"{number}-{os.urandom(4).hex()}.qcow2"
            after.append(MachineDisk(file=name, size_bytes=disk.size_bytes, layers=list(disk.layers)))
            with no_space_is_told("an overlay", target.disks):
                _copy_overlay(source.overlay(number), target.disks / name, uid)
                if durable:
                    sync_file(target.disks / name)
        if durable:
            sync_directory(target.disks)
    except BaseException:
        remove_disks(target, after)
        raise
    return after


def _copy_overlay(source: Path, target: Path, uid: int | None) -> None:
    shutil.copyfile(source, target)
    target.chmod(0o600)
    if uid is not None:
        os.chown(target, uid, uid)


def remove_disks(paths: MachinePaths, disks: list[MachineDisk]) -> None:
    for disk in disks:
        (paths.disks / disk.file).unlink(missing_ok=True)
