"""A snapshot that failed before QEMU switched to the overlays, on a disk that is full by then."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from bough.errors import NoSpace
from bough.machines.machine import Machine
from bough.machines.record import MachineDisk
from bough.paths import Home
from bough.snapshots.capture import _undo
from bough.snapshots.store import SnapshotManifest, SnapshotStore

BEFORE = MachineDisk(file="0.qcow2", size_bytes=1 << 20)
OVERLAY = MachineDisk(file="0-1a2b3c4d.qcow2", size_bytes=1 << 20)


class Qemu:
    """A QEMU whose guest still writes to the disk of before the snapshot."""

    async def query_list(self, command: str, **_: Any) -> list[dict[str, Any]]:
        if command == "query-block":
            return [
                {
                    "qdev": "/machine/peripheral/disk0-device/virtio-backend",
                    "inserted": {"node-name": "disk0"},
                }
            ]
        return [{"drv": "qcow2", "node-name": "disk0", "file": BEFORE.file}]


class Record:
    disks_before = (BEFORE,)
    disks = (OVERLAY,)


class FullDisk:
    """As much of a machine as `_undo` uses."""

    def __init__(self, home: Home, *, full: bool) -> None:
        self.paths = home.machine("aaaaaaaaaaaa")
        self.record = Record()
        self.noted: dict[str, Any] = {}
        self._full = full

    def qmp(self) -> Qemu:
        return Qemu()

    def note(self, **fields: Any) -> bool:
        self.noted = fields
        return not self._full

    def change(self, **_: Any) -> None:
        if self._full:
            raise NoSpace("full")


@pytest.mark.parametrize("full", [False, True])
async def test_overlays_stay_as_long_as_the_record_names_them(tmp_path: Path, full: bool) -> None:
    machine = FullDisk(Home.at(tmp_path), full=full)
    machine.paths.disks.mkdir(parents=True)
    for disk in (BEFORE, OVERLAY):
        (machine.paths.disks / disk.file).touch()
    nothing = cast(SnapshotStore, None), cast(SnapshotManifest, None)
    await _undo(cast(Machine, machine), *nothing, [BEFORE])
    assert machine.noted == {"disks": [BEFORE], "disks_before": None}
    assert (machine.paths.disks / OVERLAY.file).exists() == full
    assert (machine.paths.disks / BEFORE.file).exists()
