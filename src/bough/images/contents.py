"""What a disk boots by and for which processors, from its partition table and boot loaders.

Read by us, bounded; the file names of an EFI system partition by mtools, in the jail.
"""

from __future__ import annotations

import re
import struct
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from bough.errors import HostLacks
from bough.images.confined import Confinement, find_program, run_confined

SECTOR = 512
_ESP_GUID = uuid.UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b")
_MOST_PARTITIONS = 128
#: UEFI specification 3.5.1.1: the boot loader's name where nothing else is set up.
_LOADERS = {
    "BOOTX64": "x86_64",
    "BOOTAA64": "aarch64",
    "BOOTRISCV64": "riscv64",
    "BOOTRISC": "riscv64",  # as a FAT without long names has it
    "BOOTIA32": "i386",
}
#: Roots of the Discoverable Partitions Specification.
_ROOTS = {
    uuid.UUID("4f68bce3-e8cd-4db1-96e7-fbcaf984b709"): "x86_64",
    uuid.UUID("b921b045-1df0-41c3-af44-4c6f280d3fae"): "aarch64",
    uuid.UUID("72ec70a6-cf74-40e6-bd49-4bda08e8f224"): "riscv64",
    uuid.UUID("44479540-f297-41b2-9af7-d131d5f0458a"): "i386",
}


@dataclass(frozen=True)
class Contents:
    """Attributes:
    firmware: what it can be booted by, as far as that can be seen; () where it cannot.
    architectures: of its boot loaders.
    """

    firmware: tuple[str, ...] = ()
    architectures: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Partition:
    kind: uuid.UUID | int
    first_sector: int
    sectors: int

    @property
    def is_esp(self) -> bool:
        return self.kind in (_ESP_GUID, 0xEF)


#: A stick or floppy: the file system from the first sector on (UEFI specification 13.3.2).
_WHOLE_DISK = Partition(_ESP_GUID, 0, 0)


async def inspect_contents(disk: Path, confinement: Confinement) -> Contents:
    with disk.open("rb") as stream:
        has_boot_code, partitions = read_partitions(stream)
        whole = [_WHOLE_DISK] if is_fat(stream) else []
    found = {_ROOTS[p.kind] for p in partitions if isinstance(p.kind, uuid.UUID) and p.kind in _ROOTS}
    firmware = []
    if has_boot_code:
        firmware.append("bios")
    for esp in [partition for partition in partitions if partition.is_esp] or whole:
        loaders = await _list_loaders(disk, esp, confinement)
        found |= loaders
        if loaders and "uefi" not in firmware:
            firmware.append("uefi")
    if found and (whole or not found & {"x86_64", "i386"}):
        # Boot code in the first sector is a PC's; that of a FAT may do no more than say that it is none.
        firmware = ["uefi"]
    return Contents(tuple(firmware), frozenset(found))


async def _list_loaders(disk: Path, esp: Partition, confinement: Confinement) -> set[str]:
    try:
        mdir = find_program("mdir")
    except HostLacks:
        return set()
    heard = bytearray()

    async def told(data: bytes) -> None:
        heard.extend(data[: 64 * 1024 - len(heard)])

    place = f"{disk}@@{esp.first_sector * SECTOR}"
    confinement.give(disk)
    try:
        await run_confined(
            confinement, [mdir, "-b", "-i", place, "::/EFI/BOOT"], read_only=(disk,), on_output=told
        )
    finally:
        confinement.take_back(disk)
    names = re.findall(rb"/([A-Za-z0-9_~]+)\.EFI\s*$", bytes(heard).upper(), re.MULTILINE)
    return {_LOADERS[name.decode()] for name in names if name.decode() in _LOADERS}


def read_partitions(stream: BinaryIO) -> tuple[bool, list[Partition]]:
    """Whether the first sector holds code, and the partitions. Nothing raises: a broken table is empty."""
    stream.seek(0)
    sector = stream.read(SECTOR)
    if len(sector) < SECTOR or sector[510:] != b"\x55\xaa":
        return False, []
    has_code = any(sector[:440])
    entries = [sector[446 + 16 * index : 462 + 16 * index] for index in range(4)]
    partitions = [Partition(entry[4], *struct.unpack_from("<II", entry, 8)) for entry in entries if entry[4]]
    if any(partition.kind == 0xEE for partition in partitions):
        return has_code, _read_gpt(stream)
    return has_code, partitions


def is_fat(stream: BinaryIO) -> bool:
    """Whether a FAT file system, not a partition table, begins in the first sector."""
    stream.seek(0)
    sector = stream.read(SECTOR)
    return sector[510:] == b"\x55\xaa" and b"FAT" in (sector[54:57], sector[82:85])


def _read_gpt(stream: BinaryIO) -> list[Partition]:
    stream.seek(SECTOR)
    header = stream.read(SECTOR)
    if not header.startswith(b"EFI PART") or len(header) < 92:
        return []
    place, count, size = struct.unpack_from("<QII", header, 72)
    if not 128 <= size <= 4096 or place > 1 << 40:
        return []
    found = []
    stream.seek(place * SECTOR)
    table = stream.read(min(count, _MOST_PARTITIONS) * size)
    for offset in range(0, len(table) - 127, size):
        kind = uuid.UUID(bytes_le=table[offset : offset + 16])
        first, last = struct.unpack_from("<QQ", table, offset + 32)
        if kind.int and first <= last < 1 << 55:
            found.append(Partition(kind, first, last - first + 1))
    return found
