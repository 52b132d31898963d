"""The blocks of a file system inside of a disk."""

from __future__ import annotations

from typing import NamedTuple

from bough.differences.disk import Disk, DiskUnreadable, Piece

#: Instead of a device number: the content is in no file as it is.
_ESCAPED = -1


class Replaced(NamedTuple):
    """A block whose content is in the journal.

    Attributes:
        place: offset of the new content in the volume.
        is_escaped: the first four bytes are the journal's magic, which the journal stores as zeros.
    """

    place: int
    is_escaped: bool


class Volume:
    """A contiguous part of a disk.

    Attributes:
        block_bytes: set by the reader of the superblock.
        replaced: block -> its content in the journal.
    """

    def __init__(self, disk: Disk, offset_bytes: int, size_bytes: int) -> None:
        self._disk = disk
        self._offset = offset_bytes
        self.size_bytes = size_bytes
        self.block_bytes = 1024
        self.replaced: dict[int, Replaced] = {}

    def read(self, place: int, length: int) -> bytes:
        """Return bytes of the volume. Raises DiskUnreadable: they are outside."""
        self._check(place, length)
        if not self.replaced:
            return self._disk.read(self._offset + place, length)
        return b"".join(self._read_part(*part) for part in self._parts(place, length))

    def pieces(self, place: int, length: int) -> list[tuple[int, Piece]]:
        """Return the places of a part: offset in the volume, and the piece of a file.

        A block that the journal replaces has the place of its content in the journal. An escaped block has
        a place of its own.
        """
        self._check(place, length)
        found: list[tuple[int, Piece]] = []
        for at, part, block in self._parts(place, length) if self.replaced else [(place, length, None)]:
            new = self.replaced[block] if block is not None else None
            source = at if new is None else new.place + at % self.block_bytes
            offset = at
            for piece in self._disk.pieces(self._offset + source, part):
                own = piece
                if new is not None and new.is_escaped:
                    own = Piece((_ESCAPED, id(self)), offset, piece.length)
                found.append((offset, own))
                offset += piece.length
        return found

    def read_piece(self, piece: Piece) -> bytes:
        """Return the bytes of a piece of `pieces`."""
        if piece.file == (_ESCAPED, id(self)):
            return self.read(piece.place, piece.length)
        return self._disk.read_piece(piece)

    def _check(self, place: int, length: int) -> None:
        if place < 0 or length < 0 or place + length > self.size_bytes:
            raise DiskUnreadable("a block lies outside of the file system")

    def _parts(self, place: int, length: int) -> list[tuple[int, int, int | None]]:
        """Split at replaced blocks: place, length, and the replaced block or None."""
        parts: list[tuple[int, int, int | None]] = []
        end, size = place + length, self.block_bytes
        start = place
        for block in range(place // size, (end + size - 1) // size):
            if block in self.replaced:
                first, last = max(place, block * size), min(end, (block + 1) * size)
                if start < first:
                    parts.append((start, first - start, None))
                parts.append((first, last - first, block))
                start = last
        if start < end:
            parts.append((start, end - start, None))
        return parts

    def _read_part(self, place: int, length: int, block: int | None) -> bytes:
        if block is None:
            return self._disk.read(self._offset + place, length)
        new, size = self.replaced[block], self.block_bytes
        data = self._disk.read(self._offset + new.place, size)
        if new.is_escaped:
            data = b"\xc0\x3b\x39\x98" + data[4:]
        start = place - block * size
        return data[start : start + length]
