"""Grow the last partition of a disk to the disk's end, in a guest without sfdisk and partx.

UEFI specification, chapter 5 (GPT); Linux, include/uapi/linux/blkpg.h.
"""

# pathlib costs an emulated guest 20 ms to load.

from __future__ import annotations

import os
from binascii import crc32
from struct import Struct, pack

from bough.guest.agent_calls import OperationFailed

SECTOR = 512
_MBR_TABLE, _MBR_ENTRY, _MBR_MOST = 446, 16, (1 << 32) - 1
_PROTECTIVE = 0xEE
_EXTENDED = (0x05, 0x0F, 0x85)
#: Signature, revision, size, CRC, reserved, own and other place, first and last usable sector, GUID, place,
#: number and size of entries, CRC of entries.
_GPT = Struct("<8sIIIIQQQQ16sQIII")
_ENTRY_END = 40
_MOST_TABLE_BYTES = 1 << 20
_BLKPG, _RESIZE = 0x1269, 3


def grow_table(disk: int, number: int, sectors: int) -> int:
    """Let partition `number` of the table end at the disk's end. Return its new length in sectors.

    Args:
        disk: descriptor of the disk, for reading and writing.
        sectors: size of the disk, in sectors of 512 bytes.

    Raises:
        OperationFailed: the table is damaged or of an unknown kind; nothing was written.
    """
    mbr = bytearray(os.pread(disk, SECTOR, 0))
    if mbr[510:] != b"\x55\xaa":
        raise OperationFailed("the disk has no partition table that the agent knows")
    kinds = [mbr[_MBR_TABLE + _MBR_ENTRY * at + 4] for at in range(4)]
    if _PROTECTIVE in kinds:
        return _grow_gpt(disk, mbr, kinds.index(_PROTECTIVE), number, sectors)
    if not 1 <= number <= 4 or kinds[number - 1] in (0, *_EXTENDED):
        raise OperationFailed("the root is a logical partition, which the agent cannot grow without sfdisk")
    at = _MBR_TABLE + _MBR_ENTRY * (number - 1)
    start = int.from_bytes(mbr[at + 8 : at + 12], "little")
    length = min(sectors, _MBR_MOST) - start
    mbr[at + 12 : at + 16] = length.to_bytes(4, "little")
    _write(disk, 0, bytes(mbr))
    os.fsync(disk)
    return length


def _grow_gpt(disk: int, mbr: bytearray, protective: int, number: int, sectors: int) -> int:
    header = os.pread(disk, SECTOR, SECTOR)
    fields = list(_GPT.unpack_from(header))
    place, count, size = fields[10:13]
    entries = bytearray(os.pread(disk, min(count * size, _MOST_TABLE_BYTES), place * SECTOR))
    if fields[0] != b"EFI PART" or _checksum(fields) != fields[3] or crc32(entries) != fields[13]:
        raise OperationFailed("the partition table of the disk is damaged")
    if not 1 <= number <= count or size < 128 or not any(entries[(number - 1) * size : number * size]):
        raise OperationFailed(f"the disk has no partition {number}")
    table_sectors = -(-len(entries) // SECTOR)
    last = sectors - 1
    last_usable = last - table_sectors - 1
    at = (number - 1) * size
    start = int.from_bytes(entries[at + 32 : at + _ENTRY_END], "little")
    entries[at + _ENTRY_END : at + 48] = last_usable.to_bytes(8, "little")
    fields[13] = crc32(entries)
    fields[8] = last_usable
    # The copy at the disk's end first: until the primary table is written, the old one is valid.
    backup = [*fields[:5], last, 1, *fields[7:10], last - table_sectors, *fields[11:]]
    _write(disk, (last - table_sectors) * SECTOR, bytes(entries))
    _write(disk, last * SECTOR, _pack(backup))
    os.fsync(disk)
    primary = [*fields[:5], 1, last, *fields[7:]]
    _write(disk, place * SECTOR, bytes(entries))
    _write(disk, SECTOR, _pack(primary))
    cut = _MBR_TABLE + _MBR_ENTRY * protective + 12
    mbr[cut : cut + 4] = min(sectors - 1, _MBR_MOST).to_bytes(4, "little")
    _write(disk, 0, bytes(mbr))
    os.fsync(disk)
    return last_usable - start + 1


def _checksum(fields: list[object]) -> int:
    """Return the CRC of a header. The header's own CRC counts as zero."""
    return crc32(_GPT.pack(*fields[:3], 0, *fields[4:]))


def _pack(fields: list[object]) -> bytes:
    return _GPT.pack(*fields[:3], _checksum(fields), *fields[4:]).ljust(SECTOR, b"\0")


def _write(disk: int, place: int, data: bytes) -> None:
    if os.pwrite(disk, data, place) != len(data):
        raise OSError(5, "the disk took a part of the partition table only")


def tell_kernel(disk: int, number: int, start: int, length: int) -> None:
    """Tell the kernel the new length of a partition in use, in sectors."""
    import fcntl
    from array import array

    partition = array("B", pack("qqi64s64s4x", start * SECTOR, length * SECTOR, number, b"", b""))
    address, _ = partition.buffer_info()
    fcntl.ioctl(disk, _BLKPG, pack("iiiP", _RESIZE, 0, len(partition), address))
