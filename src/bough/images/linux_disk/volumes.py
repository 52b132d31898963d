"""The parts of a disk that can hold a file system: partitions, LVM volumes, or the whole disk.

bough reads the tables itself, with bounds. A broken table counts as empty: bad content raises no error.

    MBR    four entries, and a chain of logical partitions (type 0x05, 0x0f or 0x85)
    GPT    UEFI specification 5.3
    LVM2   see lvm.py
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from typing import BinaryIO

from bough.images.contents import read_partitions
from bough.images.linux_disk.lvm import read_logical_volumes
from bough.images.linux_disk.magic import Kind, recognize

SECTOR = 512
#: Types of an MBR partition that contains logical partitions.
_EXTENDED = (0x05, 0x0F, 0x85)
_MOST_LOGICAL = 60
#: A disk has few volumes. More are not looked at.
_MOST_VOLUMES = 128
WHOLE_DISK = "disk"


@dataclass(frozen=True)
class Volume:
    """A contiguous part of a disk.

    Attributes:
        name: the partition's number, the LVM volume as "group/volume", or WHOLE_DISK.
        kind: what the volume contains, by its magic bytes.
        subvolume: of btrfs; None: the default one.
    """

    name: str
    offset_bytes: int
    size_bytes: int
    kind: Kind
    subvolume: str | None = None

    def __str__(self) -> str:
        if self.name == WHOLE_DISK:
            return "the whole disk"
        name, _, subvolume = self.name.partition(":")
        place = f"LVM volume {name}" if "/" in name else f"partition {name}"
        return f"subvolume {subvolume} of {place}" if subvolume else place


def read_volumes(stream: BinaryIO) -> list[Volume]:
    """Return the volumes of a raw disk, in the order of the tables.

    Volumes beyond the disk's end, and volumes that hold nothing known, are left out.
    """
    disk_bytes = stream.seek(0, os.SEEK_END)
    whole = recognize(stream, 0, disk_bytes)
    places = [] if whole is not None else _read_places(stream, disk_bytes)
    if not places:
        places = [(WHOLE_DISK, 0, disk_bytes)]
    volumes: list[Volume] = []
    for name, offset, size in places[:_MOST_VOLUMES]:
        kind = recognize(stream, offset, size)
        if kind == Kind.LVM:
            volumes += _read_lvm(stream, offset, size)
        elif kind is not None:
            volumes.append(Volume(name, offset, size, kind))
    return volumes[:_MOST_VOLUMES]


def _read_places(stream: BinaryIO, disk_bytes: int) -> list[tuple[str, int, int]]:
    """Return name, offset and size of each partition, in bytes."""
    _, partitions = read_partitions(stream)
    places = []
    for partition in partitions:
        if partition.kind in _EXTENDED:
            places += _read_logical(stream, partition.first_sector, disk_bytes)
        else:
            places.append((str(partition.number), partition.first_sector, partition.sectors))
    return [
        (name, first * SECTOR, sectors * SECTOR)
        for name, first, sectors in places
        if first > 0 and sectors > 0 and (first + sectors) * SECTOR <= disk_bytes
    ]


def _read_logical(stream: BinaryIO, extended: int, disk_bytes: int) -> list[tuple[str, int, int]]:
    """Follow the chain of logical partitions. Each link has one partition and the place of the next link."""
    found: list[tuple[str, int, int]] = []
    place, seen = extended, set[int]()
    while place not in seen and place * SECTOR < disk_bytes and len(seen) < _MOST_LOGICAL:
        seen.add(place)
        stream.seek(place * SECTOR)
        sector = stream.read(SECTOR)
        if len(sector) < SECTOR or sector[510:] != b"\x55\xaa":
            break
        first, sectors = struct.unpack_from("<II", sector, 446 + 8)
        if sector[446 + 4]:
            found.append((str(5 + len(found)), place + first, sectors))
        (following,) = struct.unpack_from("<I", sector, 462 + 8)
        if sector[462 + 4] not in _EXTENDED or not following:
            break
        place = extended + following
    return found


def _read_lvm(stream: BinaryIO, offset: int, size: int) -> list[Volume]:
    """Return the volumes that lie in one piece on this physical volume; the others as Kind.SPREAD."""
    volumes = []
    for logical in read_logical_volumes(stream, offset, size):
        if logical.offset_bytes is None or logical.offset_bytes + logical.size_bytes > size:
            volumes.append(Volume(logical.name, offset, logical.size_bytes, Kind.SPREAD))
            continue
        place = offset + logical.offset_bytes
        kind = recognize(stream, place, logical.size_bytes)
        if kind is not None:
            volumes.append(Volume(logical.name, place, logical.size_bytes, kind))
    return volumes
