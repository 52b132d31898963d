"""Write a qcow2 overlay that holds single sectors, from a log of writes.

The clusters have 512 bytes, qcow2's smallest size, so that no written sector needs its neighbors. QEMU only
reads the file, which has an empty table of reference counts (docs/interop/qcow2.txt).
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import BinaryIO

from bough.errors import MachineFailed
from bough.machines.faults.write_log import SECTOR_BYTES, Write

#: Magic, version, backing offset and size, cluster bits, size, encryption, then offsets and sizes of tables.
_HEADER = struct.Struct(">4sIQIIQIIQQIIQQQQII")
_HEADER_BYTES = 104
_BACKING_FORMAT = 0xE2792ACA
_ENTRIES = SECTOR_BYTES // 8
#: QEMU's bound of the first table.
_MOST_TABLE_BYTES = 32 << 20
_OWN = 1 << 63


def write_overlay(
    path: Path, log: Path, writes: Iterable[Write], *, size_bytes: int, backing: str, backing_format: str
) -> None:
    """Write the last content of each written sector to a new overlay.

    Args:
        size_bytes: size of the disk. Sectors beyond the end are left out.
        backing: name of the backing file, as the header has it.

    Raises:
        MachineFailed: the disk is larger than 128 GiB. OSError
    """
    tables = _last_content(writes, size_bytes // SECTOR_BYTES)
    count = -(-size_bytes // (SECTOR_BYTES * _ENTRIES))
    table_bytes = -(-count * 8 // SECTOR_BYTES) * SECTOR_BYTES
    if table_bytes > _MOST_TABLE_BYTES:
        raise MachineFailed("a disk of more than 128 GiB does not lose unsynced writes")
    with log.open("rb") as source, path.open("xb") as target:
        place = 2 * SECTOR_BYTES
        target.write(_render_head(size_bytes, count, place, backing.encode(), backing_format.encode()))
        target.seek(place)
        target.write(bytes(table_bytes))
        first = _write_sectors(source, target, tables, place + table_bytes)
        target.seek(place)
        target.write(struct.pack(f">{count}Q", *(first.get(number, 0) for number in range(count))))


def _last_content(writes: Iterable[Write], count: int) -> dict[int, array[int]]:
    """Return number of a second table -> the place in the log of each sector's last content, or 0."""
    found: dict[int, array[int]] = {}
    for write in writes:
        start = write.offset // SECTOR_BYTES
        for number in range(min(write.length // SECTOR_BYTES, max(0, count - start))):
            table, entry = divmod(start + number, _ENTRIES)
            if table not in found:
                found[table] = array("Q", bytes(8 * _ENTRIES))
            found[table][entry] = write.data + number * SECTOR_BYTES
    return found


def _write_sectors(
    source: BinaryIO, target: BinaryIO, tables: Mapping[int, array[int]], place: int
) -> dict[int, int]:
    """Write the data and the second tables from `place` on. Return number of a second table -> its place,
    as the first table has it.
    """
    first: dict[int, int] = {}
    target.seek(place)
    for number in sorted(tables):
        entries = [0] * _ENTRIES
        for entry, at in enumerate(tables[number]):
            if at:
                source.seek(at)
                target.write(source.read(SECTOR_BYTES).ljust(SECTOR_BYTES, b"\0"))
                entries[entry] = place | _OWN
                place += SECTOR_BYTES
        target.write(struct.pack(f">{_ENTRIES}Q", *entries))
        first[number] = place | _OWN
        place += SECTOR_BYTES
    return first


def _render_head(size_bytes: int, count: int, table: int, backing: bytes, backing_format: bytes) -> bytes:
    """Return the header with the backing file's name, and the table of reference counts."""
    kind = struct.pack(">II", _BACKING_FORMAT, len(backing_format)) + backing_format
    extensions = kind.ljust(-(-len(kind) // 8) * 8, b"\0") + bytes(8)
    name = _HEADER_BYTES + len(extensions)
    header = _HEADER.pack(
        b"QFI\xfb", 3, name, len(backing), 9, size_bytes, 0, count, table, SECTOR_BYTES, 1, 0, 0,
        0, 0, 0, 4, _HEADER_BYTES,
    )  # fmt: skip
    # The table of reference counts names no block: all counts are 0.
    return (header + extensions + backing).ljust(SECTOR_BYTES, b"\0") + bytes(SECTOR_BYTES)
