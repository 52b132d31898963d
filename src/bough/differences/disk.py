"""A raw file, or a chain of qcow2 overlays on a raw file, as one disk to read.

A guest's QEMU wrote the overlays, and QEMU is hostile. Every number is checked against the file and against
bounds. The files are open descriptors: no name in a header is followed.

The form of the tables is QEMU's docs/interop/qcow2.txt. bough's overlays have no compression and no
subclusters.
"""

from __future__ import annotations

import io
import os
import struct
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

_MAGIC = b"QFI\xfb"
_HEADER = struct.Struct(">4sIQIIQIIQ")
#: Dirty refcounts and the mark "corrupt" do not matter to a reader. Other features change the meaning.
_HARMLESS_FEATURES = 0b11
_COMPRESSED, _ZERO = 1 << 62, 1
_OFFSET = 0x00FF_FFFF_FFFF_FE00
_MOST_L1_ENTRIES = 4 << 20
_MOST_CACHED_TABLES = 256


class DiskUnreadable(Exception):
    """A disk or a file system is damaged, or has unknown features. The text says which."""


class Piece(NamedTuple):
    """A part of a disk, in one file.

    Attributes:
        file: number of the device and of the inode; None: the part reads as zeros.
        place: offset in the file.
    """

    file: tuple[int, int] | None
    place: int
    length: int


class _File:
    """A file of a chain."""

    def __init__(self, descriptor: int) -> None:
        info = os.fstat(descriptor)
        self.descriptor = descriptor
        self.identity = (info.st_dev, info.st_ino)
        self.file_bytes = info.st_size

    def read(self, place: int, length: int) -> bytes:
        """Return bytes of the file. Beyond its end are zeros."""
        data = os.pread(self.descriptor, length, place)
        while data and len(data) < length:
            more = os.pread(self.descriptor, length - len(data), place + len(data))
            if not more:
                break
            data += more
        return data.ljust(length, b"\0")


class Raw(_File):
    """The raw file at the end of a chain."""

    @property
    def size_bytes(self) -> int:
        return self.file_bytes

    def find(self, offset: int, length: int) -> Iterator[tuple[int, int | None, int]]:
        yield offset, offset, length


class Overlay(_File):
    """A qcow2 file.

    Raises:
        DiskUnreadable: the header is damaged, or has features that bough never uses.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor)
        head = self.read(0, 104)
        magic, version, _, _, bits, size, encryption, l1_entries, l1_place = _HEADER.unpack_from(head)
        if magic != _MAGIC or version not in (2, 3):
            raise DiskUnreadable("an overlay is no qcow2 file")
        (features,) = struct.unpack_from(">Q", head, 72) if version == 3 else (0,)
        if features & ~_HARMLESS_FEATURES or encryption:
            raise DiskUnreadable("an overlay has features that bough never uses")
        if not 9 <= bits <= 21 or size > 1 << 60 or l1_entries > _MOST_L1_ENTRIES:
            raise DiskUnreadable("the header of an overlay is damaged")
        self.size_bytes = size
        self._bits = bits
        self._l2_bits = bits - 3
        self._l1_place, self._l1_entries = l1_place, l1_entries
        self._tables: OrderedDict[int, bytes] = OrderedDict()

    def find(self, offset: int, length: int) -> Iterator[tuple[int, int | None, int]]:
        """Yield the parts: offset on the disk, place in this file, length.

        The place is None for zeros, and -1 for a part that the backing file has.
        """
        end = offset + length
        while offset < end:
            cluster = offset >> self._bits
            start = offset - (cluster << self._bits)
            part = min((1 << self._bits) - start, end - offset)
            place = self._place(cluster)
            yield offset, place + start if place is not None and place >= 0 else place, part
            offset += part

    def _place(self, cluster: int) -> int | None:
        row = cluster >> self._l2_bits
        if row >= self._l1_entries:
            return -1
        table = self._table(row)
        if table is None:
            return -1
        (entry,) = struct.unpack_from(">Q", table, (cluster & ((1 << self._l2_bits) - 1)) << 3)
        if entry & _COMPRESSED:
            raise DiskUnreadable("an overlay has compressed clusters, which bough never writes")
        if entry & _ZERO:
            return None
        place: int = entry & _OFFSET
        return place or -1

    def _table(self, row: int) -> bytes | None:
        """Return an L2 table; None if the overlay has none there."""
        known = self._tables.get(row)
        if known is not None:
            self._tables.move_to_end(row)
            return known or None
        (entry,) = struct.unpack(">Q", self.read(self._l1_place + row * 8, 8))
        place = entry & _OFFSET
        table = self.read(place, 1 << self._bits) if place else b""
        self._tables[row] = table
        if len(self._tables) > _MOST_CACHED_TABLES:
            self._tables.popitem(last=False)
        return table or None


class Disk:
    """A chain of files as one disk.

    Args:
        descriptors: the open files, the nearest overlay first.
        formats: "raw" or "qcow2" for each.

    Raises (also `read` and `pieces`):
        DiskUnreadable
    """

    def __init__(self, descriptors: Sequence[int], formats: Sequence[str]) -> None:
        self._files = [
            Raw(descriptor) if format == "raw" else Overlay(descriptor)
            for descriptor, format in zip(descriptors, formats, strict=True)
        ]
        self._by_identity = {file.identity: file for file in self._files}
        self.size_bytes = self._files[0].size_bytes

    @property
    def files(self) -> frozenset[tuple[int, int]]:
        """The identities of the files."""
        return frozenset(self._by_identity)

    def pieces(self, offset: int, length: int) -> list[Piece]:
        """Return the places of a part of the disk, in order."""
        found: list[Piece] = []
        for piece in self._find(0, offset, length):
            before = found[-1] if found else None
            if before is not None and before.file == piece.file and _follows(before, piece):
                found[-1] = Piece(before.file, before.place, before.length + piece.length)
            else:
                found.append(piece)
        return found

    def read(self, offset: int, length: int) -> bytes:
        return b"".join([self.read_piece(piece) for piece in self.pieces(offset, length)])

    def read_piece(self, piece: Piece) -> bytes:
        if piece.file is None:
            return bytes(piece.length)
        return self._by_identity[piece.file].read(piece.place, piece.length)

    def _find(self, level: int, offset: int, length: int) -> Iterator[Piece]:
        if length <= 0:
            return
        if level == len(self._files):
            yield Piece(None, 0, length)
            return
        file = self._files[level]
        inside = max(0, min(length, file.size_bytes - offset))
        missing_at, missing = 0, 0
        for at, place, part in file.find(offset, inside) if inside else ():
            if place == -1:
                missing_at = missing_at if missing else at
                missing += part
                continue
            yield from self._find(level + 1, missing_at, missing)
            missing = 0
            yield Piece(None, 0, part) if place is None else Piece(file.identity, place, part)
        yield from self._find(level + 1, missing_at, missing)
        if length > inside:
            yield Piece(None, 0, length - inside)


def _follows(before: Piece, piece: Piece) -> bool:
    return piece.file is None or before.place + before.length == piece.place


class DiskStream(io.RawIOBase):
    """A disk as a stream, for readers of partition tables."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._disk.size_bytes}[whence]
        self._at = max(0, start + offset)
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        length = max(0, min(len(buffer), self._disk.size_bytes - self._at))
        buffer[:length] = self._disk.read(self._at, length)
        self._at += length
        return length
