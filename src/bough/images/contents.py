"""Detect a disk's firmware and processor architectures from the partition table and boot loaders.

bough reads the tables itself, with bounds. mtools lists the files of an EFI system partition, in the jail
(esp.py).
"""

from __future__ import annotations

import struct
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from bough.images.confined import Confinement
from bough.images.esp import SECTOR, EfiLoader, EspFile, choose_loader, list_loaders

_ESP_GUID = uuid.UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b")
_BIOS_BOOT_GUID = uuid.UUID("21686148-6449-6e6f-744e-656564454649")
#: A bit of a partition's attributes in a GPT (UEFI specification 5.3.3).
_LEGACY_BIOS_BOOTABLE = 1 << 2
_MOST_PARTITIONS = 128
#: Types of root partitions in the Discoverable Partitions Specification.
_ROOTS = {
    uuid.UUID("4f68bce3-e8cd-4db1-96e7-fbcaf984b709"): "x86_64",
    uuid.UUID("b921b045-1df0-41c3-af44-4c6f280d3fae"): "aarch64",
    uuid.UUID("72ec70a6-cf74-40e6-bd49-4bda08e8f224"): "riscv64",
    uuid.UUID("44479540-f297-41b2-9af7-d131d5f0458a"): "i386",
}


@dataclass(frozen=True)
class Contents:
    """The result of the detection.

    Attributes:
        firmware: firmware types that can boot the disk; () if unknown.
        architectures: architectures of the boot loaders and of the root partition types.
        loaders: the boot loaders of each EFI system partition.
    """

    firmware: tuple[str, ...] = ()
    architectures: frozenset[str] = frozenset()
    loaders: tuple[tuple[Partition, list[EspFile]], ...] = ()

    def efi_loader(self, arch: str) -> EfiLoader | None:
        """Return the loader for a UEFI boot entry; None if UEFI needs no entry, or no loader exists."""
        chosen = [(esp, choose_loader(files, arch)) for esp, files in self.loaders]
        if any(file.is_fallback and file.arch == arch for _, files in self.loaders for file in files):
            return None
        for esp, file in chosen:
            if file is not None and esp.number:
                return EfiLoader(
                    path=file.path,
                    partition=esp.number,
                    first_sector=esp.first_sector,
                    sectors=esp.sectors,
                    identity=esp.identity.hex(),
                )
        return None


@dataclass(frozen=True)
class Partition:
    """A partition of a disk.

    Attributes:
        number: from 1 on; 0: the file system covers the whole disk.
        identity: the partition's GUID as stored on the disk, or the signature of the MBR.
        boots_by_bios: a GPT partition for booting by BIOS.
    """

    kind: uuid.UUID | int
    first_sector: int
    sectors: int
    number: int = 0
    identity: bytes = b""
    boots_by_bios: bool = False

    @property
    def is_esp(self) -> bool:
        return self.kind in (_ESP_GUID, 0xEF)

    @property
    def is_gpt(self) -> bool:
        return isinstance(self.kind, uuid.UUID)


#: A stick or floppy: the file system begins in the first sector (UEFI specification 13.3.2).
_WHOLE_DISK = Partition(_ESP_GUID, 0, 0)


async def inspect_contents(disk: Path, confinement: Confinement) -> Contents:
    with disk.open("rb") as stream:
        has_boot_code, partitions = read_partitions(stream)
        whole = [_WHOLE_DISK] if is_fat(stream) else []
    found = {_ROOTS[p.kind] for p in partitions if isinstance(p.kind, uuid.UUID) and p.kind in _ROOTS}
    esps = [partition for partition in partitions if partition.is_esp] or whole
    loaders = tuple([(esp, await list_loaders(disk, esp.first_sector, confinement)) for esp in esps])
    found |= {file.arch for _, files in loaders for file in files if file.arch is not None}
    firmware = _firmware_of(has_boot_code, partitions, any(files for _, files in loaders))
    if found and (whole or not found & {"x86_64", "i386"}):
        # Boot code in the first sector is for a PC. A FAT's boot code may only print that the disk is not
        # bootable.
        firmware = ["uefi"]
    return Contents(tuple(firmware), frozenset(found), loaders)


def _firmware_of(has_boot_code: bool, partitions: list[Partition], has_loader: bool) -> list[str]:
    """Return the firmware types that can boot the disk.

    A system installed by UEFI has an EFI system partition. The first sector may contain code. On a GPT the
    code needs the partition of a BIOS loader, and does nothing without the partition.
    """
    has_gpt_esp = any(partition.is_esp and partition.is_gpt for partition in partitions)
    for_bios = not has_gpt_esp or any(partition.boots_by_bios for partition in partitions)
    firmware = ["bios"] if has_boot_code and for_bios else []
    return [*firmware, "uefi"] if has_loader or has_gpt_esp else firmware


def read_partitions(stream: BinaryIO) -> tuple[bool, list[Partition]]:
    """Return whether the first sector contains code, and the partitions.

    A broken table counts as empty: bad content raises no error.
    """
    stream.seek(0)
    sector = stream.read(SECTOR)
    if len(sector) < SECTOR or sector[510:] != b"\x55\xaa":
        return False, []
    has_code = any(sector[:440])
    entries = [sector[446 + 16 * index : 462 + 16 * index] for index in range(4)]
    signature = sector[440:444]
    partitions = []
    for number, entry in enumerate(entries, 1):
        first, sectors = struct.unpack_from("<II", entry, 8)
        if entry[4]:
            partitions.append(Partition(entry[4], first, sectors, number, signature))
    if any(partition.kind == 0xEE for partition in partitions):
        return has_code, _read_gpt(stream)
    return has_code, partitions


def is_fat(stream: BinaryIO) -> bool:
    """Return whether the first sector belongs to a FAT file system instead of a partition table."""
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
    for number, offset in enumerate(range(0, len(table) - 127, size), 1):
        kind = uuid.UUID(bytes_le=table[offset : offset + 16])
        first, last, attributes = struct.unpack_from("<QQQ", table, offset + 32)
        if kind.int and 0 < first <= last < 1 << 55:
            for_bios = kind == _BIOS_BOOT_GUID or bool(attributes & _LEGACY_BIOS_BOOTABLE)
            identity = table[offset + 16 : offset + 32]
            found.append(Partition(kind, first, last - first + 1, number, identity, for_bios))
    return found
