"""Check the agent disks: each file is what its name says, and no saved memory misses its disk."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from bough.audit.finding import Finding, Repair
from bough.images.agent_disk.store import DISK_NAME
from bough.machines.record import MachineRecord
from bough.machines.state import LIVE
from bough.paths import Home
from bough.snapshots.store import SnapshotManifest


def audit_disk(path: Path) -> Iterator[Finding]:
    """Check the content of an agent disk, at most 8 MiB."""
    name = DISK_NAME.fullmatch(path.name)
    if name is not None and path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() != name[2]:
        yield Finding(
            "agent-disk-damaged",
            path,
            f"the agent disk {name[2][:12]} has another content",
            "move it away (--repair does): the next boot builds it again; saved memory that knows it is lost",
            Repair.SET_ASIDE,
        )


def audit_machine_disk(record: MachineRecord, home: Home) -> Iterator[Finding]:
    """Check that a machine with a guest in memory has its disk. A boot chooses another one."""
    has_memory = record.state in LIVE or record.suspended is not None
    path = home.agent_disk(record.hardware.arch, record.agent_disk or "")
    if record.agent_disk is not None and has_memory and not path.is_file():
        yield Finding(
            "agent-disk-missing",
            path,
            f"the agent disk that the memory of machine '{record.name}' knows is missing",
            f"restore it from a backup, or boot from the disks: bough start {record.name} --cold",
            machine=record.id,
        )


def audit_snapshot_disk(manifest: SnapshotManifest, home: Home) -> Iterator[Finding]:
    path = home.agent_disk(manifest.hardware.arch, manifest.agent_disk or "")
    if manifest.agent_disk is not None and manifest.memory is not None and not path.is_file():
        yield Finding(
            "snapshot-damaged",
            path,
            f"snapshot {manifest.label or manifest.id} of '{manifest.machine_name}' needs {path}, "
            "which is missing",
            "restore it from a backup; forks of its disks alone still work",
        )
