"""What will be started, as data: resolved in full, nothing left to QEMU's or the host's defaults."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from bough.qemu.jail import Jail

AGENT_PORT = "org.bough.agent"
#: Of a new machine: the agent's, and number 0, which QEMU keeps for a console.
SERIAL_PORTS = 2


@dataclass(frozen=True)
class Layer:
    """A read-only image file that an overlay stands on."""

    path: str
    format: Literal["raw", "qcow2"]


@dataclass(frozen=True)
class DiskPlan:
    """A disk; `backing` lists what its file stands on, nearest first.

    Attributes:
        id: name of the device and of its top block node, for QMP.
        serial: what the guest sees in /dev/disk/by-id/virtio-<serial>; 20 bytes at most.
    """

    id: str
    path: str
    serial: str
    format: Literal["raw", "qcow2"] = "qcow2"
    backing: tuple[Layer, ...] = ()
    read_only: bool = False


@dataclass(frozen=True)
class MediumPlan:
    """A CD or a floppy in its drive: an image file of the store, read-only."""

    kind: Literal["cdrom", "floppy"]
    path: str
    boot_index: int


@dataclass(frozen=True)
class NicPlan:
    """The uplink. `passt` reaches the host's networks and not its loopback; `user` is QEMU's own,
    for hosts without passt: slower, and it needs the host's network in the jail. `isolated` leads
    nowhere: a hub of QEMU's with nothing else at it. `announces` is Hardware's."""

    mac: str
    backend: Literal["passt", "user", "isolated"]
    announces: bool = False


@dataclass(frozen=True)
class Firmware:
    """`code` and `variables` are for UEFI, and without `variables` it is U-Boot's; without
    `code` a BIOS machine has what QEMU finds itself."""

    kind: Literal["bios", "uefi"]
    code: str | None = None
    variables: str | None = None


@dataclass(frozen=True)
class DirectBoot:
    """A kernel of the host instead of the one on the disk."""

    kernel: str
    initrd: str | None = None
    cmdline: str = ""


@dataclass(frozen=True)
class Limits:
    """What the process may take of the host; None: no limit of ours.

    Attributes:
        cpu_percent: 100 is one processor.
        disk_bytes_per_s, disk_operations_per_s: of all disks together, reading and writing.
    """

    process_memory_bytes: int | None = None
    cpu_percent: int | None = None
    disk_bytes_per_s: int | None = None
    disk_operations_per_s: int | None = None


@dataclass(frozen=True)
class Plan:
    """Attributes:
    clock: QEMU's -rtc base: "utc", "localtime", or a point in time (see `resolve_clock`).
    from_template: goes on from a snapshot: RAM is mapped over a memory file that is passed in, and QEMU
        waits for the state of its devices.
    rehearsal: of nobody's machine: what its guest sends is thrown away.
    uid: as which the process runs when the service is root (see `machine_uid`).
    media, display: what a machine has for guests that have no agent of ours.
    boot_index: of the first disk; the others follow.
    serial_ports, disk_queues: see Hardware.
    agent_port: the name, in the guest, of the port that its agent opens.
    accelerator_note: what the user should know of the accelerator.
    vmgenid: changes when the machine is cloned or set back, and only then.
    """

    machine_id: str
    name: str
    arch: str
    qemu: str
    accelerator: Literal["kvm", "tcg"]
    machine_type: str
    cpu_model: str
    vcpus: int
    memory_bytes: int
    uuid: str
    vmgenid: str
    disks: tuple[DiskPlan, ...]
    nic: NicPlan | None = None
    firmware: Firmware = Firmware("bios")
    direct_boot: DirectBoot | None = None
    clock: str = "utc"
    uid: int | None = None
    limits: Limits = Limits()
    media: tuple[MediumPlan, ...] = ()
    display: bool = False
    boot_index: int = 1
    serial_ports: int = SERIAL_PORTS
    disk_queues: int | None = None
    agent_port: str = AGENT_PORT
    accelerator_note: str | None = None
    from_template: bool = False
    rehearsal: bool = False
    jail: Jail = field(default_factory=Jail)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def resolve_clock(setting: str, offset_s: float | None, *, now: datetime | None = None) -> str:
    """QEMU's -rtc base for "utc", "local", or an offset from now in seconds."""
    if offset_s is None:
        return "localtime" if setting == "local" else "utc"
    moment = (now or datetime.now(UTC)) + timedelta(seconds=offset_s)
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S")
