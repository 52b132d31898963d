"""Compare the contents of two files: by their places first, by their bytes where the places differ.

Two files with the same places in the same files of the host have the same content. So nothing is read that
no guest has written since both disks were one.
"""

from __future__ import annotations

from collections.abc import Iterator

from bough.differences.disk import Disk, DiskUnreadable, Piece
from bough.differences.tree import Found, Node

_CHUNK = 1 << 20


class Contents:
    """Compares files.

    Args:
        most_bytes: how many bytes are read. Beyond, files of equal size and time count as equal.

    Attributes:
        read_bytes: bytes read so far.
        assumed: number of files of which size and time were compared only.
    """

    def __init__(self, most_bytes: int) -> None:
        self._left = most_bytes
        self.read_bytes = 0
        self.assumed = 0

    def are_equal(self, before: Node, after: Node) -> bool:
        """Return whether two regular files have the same content.

        Raises:
            DiskUnreadable: a file is damaged.
        """
        one, other = before.inode, after.inode
        if one.size != other.size:
            return False
        if one.inline is not None or other.inline is not None:
            return before.files.read(one, one.size) == after.files.read(other, other.size)
        return self._compare(before, after)

    def spend(self, count: int) -> bool:
        """Count bytes that are about to be read. Return False if too many were read."""
        if self._left <= 0:
            return False
        self._left -= count
        self.read_bytes += count
        return True

    def _compare(self, before: Node, after: Node) -> bool:
        lefts, rights = _pieces(before), _pieces(after)
        left, right = next(lefts, None), next(rights, None)
        while left is not None and right is not None:
            length = min(left.length, right.length)
            if not _same_place(left, right):
                length = min(length, _CHUNK)
                if not self.spend(2 * length):
                    self.assumed += 1
                    return before.inode.modified == after.inode.modified
                if _read(before, left, length) != _read(after, right, length):
                    return False
            left = _rest(left, length) or next(lefts, None)
            right = _rest(right, length) or next(rights, None)
        return left is None and right is None


def _pieces(node: Node) -> Iterator[Piece]:
    for run in node.files.runs(node.inode):
        if run.place is None:
            yield Piece(None, 0, run.length)
            continue
        for _, piece in node.files.volume.pieces(run.place, run.length):
            yield piece


def _same_place(left: Piece, right: Piece) -> bool:
    return left.file == right.file and (left.file is None or left.place == right.place)


def _rest(piece: Piece, length: int) -> Piece | None:
    left = piece.length - length
    return Piece(piece.file, piece.place + length, left) if left else None


def _read(node: Node, piece: Piece, length: int) -> bytes:
    return node.files.volume.read_piece(Piece(piece.file, piece.place, length))


def compare_volumes(
    disks: tuple[Disk, Disk], volumes: tuple[Found, Found], contents: Contents
) -> bool | None:
    """Return whether two parts of disks are equal; None: too much to read."""
    if volumes[0].size_bytes != volumes[1].size_bytes:
        return False
    offset, end = 0, volumes[0].size_bytes
    while offset < end:
        length = min(_CHUNK, end - offset)
        places = [
            disk.pieces(one.offset_bytes + offset, length) for disk, one in zip(disks, volumes, strict=True)
        ]
        if places[0] != places[1]:
            if not contents.spend(2 * length):
                return None
            one, other = (
                disk.read(volume.offset_bytes + offset, length)
                for disk, volume in zip(disks, volumes, strict=True)
            )
            if one != other:
                return False
        offset += length
    return True


def read_text(node: Node, most_bytes: int) -> bytes | None:
    """Return the content of a file; None: larger than `most_bytes`, or damaged."""
    if node.inode.size > most_bytes:
        return None
    try:
        return node.files.read(node.inode, most_bytes)
    except DiskUnreadable:
        return None
