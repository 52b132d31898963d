"""Logs of writes in QEMU's format, and the content of a disk after a power loss at a given moment.

The format is that of the driver blklogwrites, and of dm-log-writes of Linux:

    sector 0     magic, version, number of entries, size of a sector
    each entry   a sector with (sector, number of sectors, flags, length of a mark), then the data; a discard
                 has none

An entry is written after its request is done and before the guest is told so.
"""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

MAGIC = 0x6A736677736872
FLUSH, FUA, DISCARD, MARK = 1, 2, 4, 8
_SUPER = struct.Struct("<QQQI")
_ENTRY = struct.Struct("<QQQQ")


@dataclass(frozen=True)
class Write:
    """A write; `data_offset` is the place of its data in the log; `end` is the place of the next entry."""

    offset: int
    length: int
    flags: int
    data_offset: int
    end: int

    @property
    def is_barrier(self) -> bool:
        """Return whether all earlier writes are on the disk."""
        return bool(self.flags & (FLUSH | FUA))


def parse_log(log: Path) -> list[Write]:
    """Parse a log. Raises ValueError: the file is no such log, or an entry is invalid."""
    return list(_parse(log))


def _parse(log: Path) -> Iterator[Write]:
    size = log.stat().st_size
    with log.open("rb") as file:
        magic, version, _, sector = _SUPER.unpack(file.read(_SUPER.size))
        if magic != MAGIC or version != 1 or sector not in (512, 4096):
            raise ValueError(f"{log} is no log of writes")
        # The number of entries in the head is not used: it is written with each flush only.
        place = sector
        while place + _ENTRY.size <= size:
            file.seek(place)
            start, count, flags, mark = _ENTRY.unpack(file.read(_ENTRY.size))
            if not (count or flags):
                return
            if flags & ~(FLUSH | FUA | DISCARD | MARK) or mark:
                raise ValueError(f"an entry at {place} of {log} makes no sense")
            data = place + sector
            end = data if flags & DISCARD else data + count * sector
            yield Write(start * sector, count * sector, flags, data, end)
            place = end


def apply(writes: Iterable[Write], log: Path, disk: Path) -> None:
    with log.open("rb") as source, disk.open("r+b") as target:
        size = os.fstat(target.fileno()).st_size
        for write in writes:
            if write.flags & DISCARD:
                # A discarded range reads as zeros, up to the end of the file.
                data = bytes(max(0, min(write.length, size - write.offset)))
            else:
                source.seek(write.data_offset)
                data = source.read(write.length)
            if data:
                target.seek(write.offset)
                target.write(data)
                size = max(size, write.offset + len(data))


@dataclass(frozen=True)
class Cut:
    """A power loss after `seen` writes were done.

    Attributes:
        kept: the writes on the disk: all up to the last barrier, and none or some of the rest.
    """

    seen: int
    kept: tuple[Write, ...]


def cuts(writes: list[Write], rng: random.Random) -> Iterator[Cut]:
    """Yield two cuts at each barrier, just before the next one: without later writes, and with
    some of them.
    """
    barriers = [number for number, write in enumerate(writes) if write.is_barrier]
    for barrier, following in zip(barriers, [*barriers[1:], len(writes)], strict=True):
        sure, open_ = tuple(writes[: barrier + 1]), writes[barrier + 1 : following]
        yield Cut(following, sure)
        some = tuple(write for write in open_ if rng.random() < 0.5)
        if some:
            yield Cut(following, sure + some)
