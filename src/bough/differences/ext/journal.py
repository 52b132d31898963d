"""The blocks that the kernel would replace from a journal (JBD2) at a mount.

    superblock    where the log begins, and the number of its first transaction
    descriptor    a list of blocks, whose new contents follow
    revoke        blocks whose older contents in the log must not be used
    commit        the end of a transaction; a transaction without an end never happened

The form is the kernel's Documentation/filesystems/ext4/journal.rst. The replay is of blocks in memory: the
disk does not change.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from bough.differences.disk import DiskUnreadable
from bough.differences.ext.volume import Replaced

_MAGIC = 0xC03B3998
_DESCRIPTOR, _COMMIT, _SUPER_1, _SUPER_2, _REVOKE = 1, 2, 3, 4, 5
_ESCAPED, _SAME_IDENTITY, _LAST = 1, 2, 8
_REVOKES, _WIDE, _ASYNC, _CHECKSUM_2, _CHECKSUM_3, _FAST = 1, 2, 4, 8, 16, 32
_HEADER = struct.Struct(">III")
_MOST_BLOCKS = 1 << 20

#: Block of the journal -> offset in the volume; None: the journal has no such block.
Place = Callable[[int], int | None]
Read = Callable[[int, int], bytes]


@dataclass(frozen=True)
class _Log:
    """The part of a journal that contains the log."""

    block_bytes: int
    first: int
    end: int
    start: int
    sequence: int
    features: int

    def after(self, block: int, steps: int = 1) -> int:
        block += steps
        return block if block < self.end else self.first + block - self.end

    @property
    def tail_bytes(self) -> int:
        """Bytes of a checksum at the end of a descriptor."""
        return 4 if self.features & (_CHECKSUM_2 | _CHECKSUM_3) else 0


def find_replaced(place: Place, read: Read, block_bytes: int) -> dict[int, Replaced]:
    """Return block of the file system -> its new content.

    Raises:
        DiskUnreadable: the journal is damaged.
    """
    log = _read_log(place, read, block_bytes)
    replaced: dict[int, tuple[int, Replaced]] = {}
    revoked: dict[int, int] = {}
    if not log.start:
        return {}
    for sequence, blocks, forbidden in _transactions(log, place, read):
        for block in forbidden:
            revoked[block] = sequence
        for block, new in blocks:
            replaced[block] = (sequence, new)
    # A revoke of a transaction is about the contents of earlier transactions and of its own.
    return {block: new for block, (sequence, new) in replaced.items() if revoked.get(block, -1) < sequence}


def _read_log(place: Place, read: Read, block_bytes: int) -> _Log:
    head = read(_offset(place, 0), 1024)
    magic, kind, _ = _HEADER.unpack_from(head)
    size, count, first, sequence, start = struct.unpack_from(">5I", head, 12)
    features = struct.unpack_from(">I", head, 0x28)[0] if kind == _SUPER_2 else 0
    if magic != _MAGIC or kind not in (_SUPER_1, _SUPER_2) or size != block_bytes:
        raise DiskUnreadable("its journal is damaged")
    if features & ~(_REVOKES | _WIDE | _ASYNC | _CHECKSUM_2 | _CHECKSUM_3 | _FAST):
        raise DiskUnreadable("its journal has features of a newer Linux")
    if features & _FAST:
        # The area of fast commits is at the end. Its records are not blocks.
        count -= struct.unpack_from(">I", head, 0x54)[0] or 256
    if not 0 < first < count <= _MOST_BLOCKS * 16 or (start and not first <= start < count):
        raise DiskUnreadable("its journal is damaged")
    return _Log(size, first, count, start, sequence, features)


def _offset(place: Place, block: int) -> int:
    found = place(block)
    if found is None:
        raise DiskUnreadable("its journal is damaged")
    return found


def _transactions(
    log: _Log, place: Place, read: Read
) -> Iterator[tuple[int, list[tuple[int, Replaced]], list[int]]]:
    """Yield the complete transactions: number, new contents, revoked blocks."""
    block, sequence = log.start, log.sequence
    blocks: list[tuple[int, Replaced]] = []
    forbidden: list[int] = []
    for _ in range(log.end - log.first):
        data = read(_offset(place, block), log.block_bytes)
        magic, kind, number = _HEADER.unpack_from(data)
        if magic != _MAGIC or number != sequence & 0xFFFFFFFF:
            return
        block = log.after(block)
        if kind == _DESCRIPTOR:
            for target, is_escaped in _read_tags(log, data):
                blocks.append((target, Replaced(_offset(place, block), is_escaped)))
                block = log.after(block)
        elif kind == _REVOKE:
            forbidden += _read_revokes(log, data)
        elif kind == _COMMIT:
            yield sequence, blocks, forbidden
            sequence, blocks, forbidden = sequence + 1, [], []
        else:
            return
        if len(blocks) > _MOST_BLOCKS or len(forbidden) > _MOST_BLOCKS * 4:
            raise DiskUnreadable("its journal is damaged")


def _read_tags(log: _Log, data: bytes) -> Iterator[tuple[int, bool]]:
    """Yield the blocks of a descriptor, and whether each is escaped."""
    wide, third = bool(log.features & _WIDE), bool(log.features & _CHECKSUM_3)
    length = 16 if third else (12 if wide else 8) + (2 if log.features & _CHECKSUM_2 else 0)
    at, end = _HEADER.size, log.block_bytes - log.tail_bytes
    while at + length <= end:
        if third:
            low, flags, high, _ = struct.unpack_from(">IIII", data, at)
        else:
            low, _, flags = struct.unpack_from(">IHH", data, at)
            high = struct.unpack_from(">I", data, at + 8)[0] if wide else 0
        yield low | ((high if wide else 0) << 32), bool(flags & _ESCAPED)
        at += length if flags & _SAME_IDENTITY else length + 16
        if flags & _LAST:
            return


def _read_revokes(log: _Log, data: bytes) -> list[int]:
    (used,) = struct.unpack_from(">I", data, 12)
    width = 8 if log.features & _WIDE else 4
    end = min(used, log.block_bytes - log.tail_bytes)
    count = max(0, end - 16) // width
    return list(struct.unpack_from(f">{count}{'Q' if width == 8 else 'I'}", data, 16))
