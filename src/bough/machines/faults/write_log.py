"""Logs of a disk's writes in the format of QEMU's driver blklogwrites (dm-log-writes of Linux).

    sector 0     magic, version, number of entries, size of a sector
    each entry   a sector with (sector, number of sectors, flags, length of a mark), then the data; a discard
                 has none

An entry is written after its request is done, and before the guest is told so. QEMU wrote the log: it is
checked, and a wrong log harms the machine's own disk alone.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import BinaryIO, NamedTuple

from bough.errors import MachineFailed

SECTOR_BYTES = 512
_MAGIC = 0x6A736677736872
_FLUSH, _FUA, _DISCARD, _MARK = 1, 2, 4, 8
#: Flags of the entries that QEMU writes.
_KINDS = (0, _FLUSH, _FUA, _FLUSH | _FUA, _DISCARD)
_HEAD = struct.Struct("<QQQI")
_ENTRY = struct.Struct("<QQQQ")


class Write(NamedTuple):
    """A write: its place on the disk and its data's place in the log, in bytes."""

    offset: int
    length: int
    data: int


def read_synced(log: Path, seed: int | None = None) -> Iterator[Write]:
    """Yield the writes that were on the disk at the last flush, in order.

    A discard is left out: a disk may ignore it.

    Args:
        seed: None: all later writes are lost; a seed chooses which of them are lost.

    Raises:
        MachineFailed: the file is no such log.
    """
    end = _end_of_last_flush(log)
    random = Random(seed)
    for _, flags, write in _entries(log):
        if flags & _DISCARD or not write.length:
            continue
        if write.data < end or (seed is not None and random.random() < 0.5):
            yield write


def _end_of_last_flush(log: Path) -> int:
    """Return the place in the log up to which all writes are on the disk."""
    synced = 0
    for end, flags, _ in _entries(log):
        if flags & (_FLUSH | _FUA):
            synced = end
    return synced


def _skip_hole(file: BinaryIO, place: int, size: int) -> int | None:
    """Return the place of the first entry behind a hole of the log, or None."""
    for at in range(place, size - SECTOR_BYTES + 1, SECTOR_BYTES):
        file.seek(at)
        sector = file.read(SECTOR_BYTES)
        _, count, flags, mark = _ENTRY.unpack(sector[: _ENTRY.size])
        fits = at + SECTOR_BYTES + (0 if flags & _DISCARD else count * SECTOR_BYTES) <= size
        if (count or flags) and flags in _KINDS and not mark and not any(sector[_ENTRY.size :]) and fits:
            return at
    return None


def _entries(log: Path) -> Iterator[tuple[int, int, Write]]:
    """Yield end, flags and write of each whole entry."""
    with log.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(_HEAD.size)
        if len(head) < _HEAD.size:
            return  # nothing was written
        magic, version, _, sector = _HEAD.unpack(head)
        if magic != _MAGIC or version != 1 or sector != SECTOR_BYTES:
            raise MachineFailed(f"{log.name} is no log of writes")
        place = sector
        while place + sector <= size:
            file.seek(place)
            start, count, flags, mark = _ENTRY.unpack(file.read(_ENTRY.size))
            if not (count or flags):
                # QEMU ended before it wrote this entry. Later entries may be there.
                found = _skip_hole(file, place, size)
                if found is None:
                    return
                place = found
                continue
            if flags & ~(_FLUSH | _FUA | _DISCARD | _MARK) or mark:
                raise MachineFailed(f"an entry of {log.name} is malformed")
            data = place + sector
            place = data if flags & _DISCARD else data + count * sector
            if place > size:
                return  # cut off
            yield place, flags, Write(start * sector, count * sector, data)
