"""Disks on the command line: a device for each disk, and the controllers that the devices need.

    virtio   virtio-blk-pci, a PCI device for each disk
    scsi     scsi-hd at one virtio-scsi controller
    sata     ide-hd at an AHCI controller of 6 ports
    ide      ide-hd at the two channels of a PIIX3, two drives each
    nvme     a controller with one namespace for each disk. QEMU cannot save the state of the controller. A
             drive of the controller itself, without nvme-ns, crashes QEMU 7.2 when its node is replaced.

An ide-hd cannot be read-only: a read-only disk on "sata" or "ide" is a CD.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence

from bough.qemu.block import render_option
from bough.qemu.plan import DiskPlan

#: Disks that a bus has room for, a CD included.
ROOM = {"sata": 6, "ide": 4}
#: Buses whose state QEMU cannot save.
UNSAVED = frozenset({"nvme"})
#: Only a PC has the controller.
PC_ONLY = frozenset({"ide"})
#: Place of the CD on IDE: the first drive of the second channel, as in most computers.
IDE_CD: Mapping[str, str | int] = {"bus": "ide.1", "unit": 0}

_IDE_PLACES: tuple[tuple[str, int], ...] = (("ide.0", 0), ("ide.0", 1), ("ide.1", 0), ("ide.1", 1))
_QDEV = re.compile(r"(?:/machine/peripheral/)?([a-z]{1,16}\d{0,3})-device(?:/virtio-backend)?")


def render_controllers(
    buses: Collection[str], *, machine_type: str, queues: int | None, has_ide_cd: bool = False
) -> list[str]:
    """Return the words for the controllers that several disks share.

    Args:
        queues: of a controller for SCSI; None: QEMU's default.
        has_ide_cd: a CD is at the IDE controller.
    """
    found = []
    if "scsi" in buses:
        found.append(render_option("virtio-scsi-pci", {"id": "scsi", "num_queues": queues}))
    if "sata" in buses:
        found.append("ich9-ahci,id=sata")
    if ("ide" in buses or has_ide_cd) and not machine_type.startswith("pc-i440fx"):  # which has one
        found.append("piix3-ide,id=ide")
    return [word for one in found for word in ("-device", one)]


def render_devices(
    disks: Sequence[DiskPlan], *, first_boot_index: int, queues: int | None, has_ide_cd: bool = False
) -> list[list[str]]:
    """Return the words for the device of each disk.

    Raises:
        ValueError: a bus has no place left; see `find_crowded`.
    """
    places = {bus: iter(range(1 << 16)) for bus in ("scsi", "sata")}
    ide = iter([place for place in _IDE_PLACES if not (has_ide_cd and place == tuple(IDE_CD.values()))])
    return [
        _render_device(disk, first_boot_index + number, queues, places, ide)
        for number, disk in enumerate(disks)
    ]


def _render_device(
    disk: DiskPlan,
    boot_index: int,
    queues: int | None,
    places: dict[str, Iterator[int]],
    ide: Iterator[tuple[str, int]],
) -> list[str]:
    own: dict[str, str | int | None] = {
        "id": f"{disk.id}-device",
        "drive": disk.id,
        "serial": disk.serial,
        "bootindex": boot_index,
    }
    is_cd = disk.read_only and disk.bus in ("sata", "ide")
    model = "ide-cd" if is_cd else "ide-hd"
    cache = {} if is_cd else {"write-cache": "on"}
    match disk.bus:
        case "virtio":
            device = render_option("virtio-blk-pci", {**own, "num-queues": queues, **cache})
        case "scsi":
            place: dict[str, str | int] = {"bus": "scsi.0", "scsi-id": next(places["scsi"])}
            device = render_option("scsi-hd", {**place, **own, **cache})
        case "sata":
            device = render_option(model, {"bus": f"sata.{next(places['sata'])}", **own, **cache})
        case "ide":
            bus, unit = next(ide, (None, 0))
            if bus is None:
                raise ValueError("too many disks on IDE")
            device = render_option(model, {"bus": bus, "unit": unit, **own, **cache})
        case "nvme":
            controller = render_option("nvme", {"id": f"{disk.id}-nvme", "serial": disk.serial})
            del own["serial"]
            namespace = render_option("nvme-ns", {"bus": f"{disk.id}-nvme", **own, **cache})
            return ["-device", controller, "-device", namespace]
        case _:
            raise ValueError(f"unknown bus {disk.bus!r}")
    return ["-device", device]


def find_crowded(buses: Sequence[str], *, has_ide_cd: bool) -> str | None:
    """Return a bus that has less room than the disks need, or None."""
    taken = [*buses, *(["ide"] if has_ide_cd else [])]
    return next((bus for bus, room in ROOM.items() if taken.count(bus) > room), None)


def device_path(disk_id: str, bus: str) -> str:
    """Return the place of a disk's device in QEMU's object tree, for limits and for the node of the disk.

    The device around a virtio-blk has no disk: its backend has.
    """
    return f"/machine/peripheral/{disk_id}-device" + ("/virtio-backend" if bus == "virtio" else "")


def disk_of(qdev: object) -> str | None:
    """Return the disk ("disk0") of a device that query-block names, or None."""
    match = _QDEV.fullmatch(str(qdev)[:200])
    return match[1] if match else None


def path_of(qdev: object) -> str:
    """Return the place in the object tree of a device that query-block names by a path or an id."""
    text = str(qdev)[:200]
    return text if text.startswith("/") else f"/machine/peripheral/{text}"
