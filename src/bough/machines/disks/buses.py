"""The buses of a machine's disks: which disk is on which, and what a bus cannot do."""

from __future__ import annotations

from bough.errors import InvalidSpec, WrongState
from bough.images.store import ImageManifest
from bough.machines.record import MachineRecord
from bough.qemu.arch import architecture
from bough.qemu.disk_bus import PC_ONLY, ROOM, UNSAVED, find_crowded
from bough.spec import MachineSpec


def disk_buses(record: MachineRecord) -> list[str]:
    """Return the bus of each disk of the record."""
    return buses_of(record.spec, record.disk_bus, has_root=record.media.root != "none")


def buses_of(spec: MachineSpec, bus: str, *, has_root: bool) -> list[str]:
    """Return the bus of each disk.

    Args:
        bus: of disks that name none.
        has_root: the machine has a disk before the extra disks.
    """
    return [*([bus] if has_root else []), *(disk.bus or bus for disk in spec.disks)]


def check_buses(spec: MachineSpec, image: ImageManifest) -> None:
    """Raise InvalidSpec if the machine lacks a controller, or a bus has less room than the disks need."""
    bus = image.disk_bus if spec.disk_bus == "auto" else spec.disk_bus
    buses = buses_of(spec, bus, has_root=image.media == "disk" or spec.disk is not None)
    buses += [bus] if image.cloud_init else []  # the seed
    buses += [bus] if image.agent == "disk" else []
    has_cd = spec.cdrom is not None or image.media == "cdrom"
    _check(bus, buses, image.arch, has_cd=has_cd)


def check_room(record: MachineRecord) -> None:
    """Raise InvalidSpec, as check_buses, for a machine whose spec may have changed."""
    more = [record.media.seed, record.agent_disk is not None]
    buses = [*disk_buses(record), *(record.disk_bus for has in more if has)]
    _check(record.disk_bus, buses, record.hardware.arch, has_cd=record.media.cdrom is not None)


def _check(bus: str, buses: list[str], arch: str, *, has_cd: bool) -> None:
    missing = sorted(PC_ONLY & {bus, *buses})
    if missing and not architecture(arch).is_pc:
        raise _refused(f"a machine of {arch} has no {missing[0]}", "use virtio, scsi, sata or nvme")
    crowded = find_crowded(buses, has_ide_cd=has_cd and bus == "ide")
    if crowded is not None:
        cd = " and the CD" if has_cd and crowded == "ide" else ""
        message = f"{crowded} has room for {ROOM[crowded]} drives: the machine has more with its disks{cd}"
        raise _refused(message, "put some disks on another bus: --extra-disk 10GiB,bus=scsi")


def _refused(message: str, hint: str) -> InvalidSpec:
    problem: dict[str, str | None] = {"place": "disk_bus", "message": message, "hint": hint}
    return InvalidSpec(f"disk_bus: {message}", hint=hint, problems=[problem])


def has_unsaved_bus(spec: MachineSpec, image: ImageManifest) -> bool:
    """Return whether a new machine gets a disk on a bus whose state QEMU cannot save."""
    bus = image.disk_bus if spec.disk_bus == "auto" else spec.disk_bus
    return bool(UNSAVED & set(buses_of(spec, bus, has_root=True)))


def check_saved(record: MachineRecord, doing: str) -> None:
    """Raise WrongState if QEMU cannot save the state of the machine's disk controllers.

    Args:
        doing: for the message: "a snapshot with its memory".
    """
    for number, bus in enumerate(disk_buses(record)):
        if bus in UNSAVED:
            raise WrongState(
                f"{doing} is not possible: disk {number} of machine '{record.name}' is on {bus}, and QEMU "
                f"cannot save the state of {bus}",
                hint="snapshot its disks alone (--disks-only), or stop the machine first; "
                "the other buses can be saved",
                machine=record.name,
            )
