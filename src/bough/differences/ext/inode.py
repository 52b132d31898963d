"""Inodes, and the places of their contents."""

from __future__ import annotations

import stat
import struct
from collections.abc import Iterator
from typing import NamedTuple

from bough.differences.disk import DiskUnreadable
from bough.differences.ext.attributes import parse_in_inode
from bough.differences.ext.volume import Volume

_FIXED = struct.Struct("<HHIIIIIHHIII60sIIII4HI")
_EXTENTS, _INLINE = 0x80000, 0x1000_0000
_EXTENT_MAGIC = 0xF30A
_MOST_DEPTH = 5
#: An inode of a damaged file system may name blocks without end.
_MOST_RUNS = 1 << 20
_UNWRITTEN = 32768


class Inode(NamedTuple):
    """An inode.

    Attributes:
        mode: type and permissions, as stat(2) has them.
        changed, modified: ctime and mtime, in nanoseconds.
        used_bytes: space on the disk.
        block: the 60 bytes with extents, blocks, a short link, or a device.
        inline: content that is in the inode itself; None: in blocks.
        attributes: the part of the inode after its fields, which may have extended attributes.
        attribute_block: the block with further ones; 0: none.
    """

    number: int
    mode: int
    uid: int
    gid: int
    size: int
    links: int
    changed: int
    modified: int
    generation: int
    flags: int
    used_bytes: int
    block: bytes
    inline: bytes | None
    attributes: bytes
    attribute_block: int

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def is_regular(self) -> bool:
        return stat.S_ISREG(self.mode)

    @property
    def is_link(self) -> bool:
        return stat.S_ISLNK(self.mode)

    @property
    def is_device(self) -> bool:
        return stat.S_ISBLK(self.mode) or stat.S_ISCHR(self.mode)


class Run(NamedTuple):
    """A part of a file: offset in the file, place in the volume (None: zeros), length. In bytes."""

    offset: int
    place: int | None
    length: int


def parse_inode(number: int, data: bytes, block_bytes: int) -> Inode:
    """Return the inode in `data`, which has at least 128 bytes."""
    # Left out: atime, dtime, fragment address, and the rest of the part of the operating system.
    fields = _FIXED.unpack_from(data)
    mode, uid, size, _, ctime, mtime, _, gid, links, blocks, flags = fields[:11]
    block, generation, attribute_block, size_high, _ = fields[12:17]
    blocks_high, attribute_block_high, uid_high, gid_high = fields[17:21]
    extra = int.from_bytes(data[0x80:0x82], "little") if len(data) > 0x90 else 0
    ctime_extra, mtime_extra = struct.unpack_from("<II", data, 0x84) if extra >= 12 else (0, 0)
    # The high half of the size is of regular files and directories; older Linux used it otherwise.
    whole = size | (size_high << 32 if stat.S_ISREG(mode) or stat.S_ISDIR(mode) else 0)
    unit = block_bytes if flags & 0x40000 else 512  # EXT4_HUGE_FILE_FL
    return Inode(
        number=number,
        mode=mode,
        uid=uid | uid_high << 16,
        gid=gid | gid_high << 16,
        size=whole,
        links=links,
        changed=_time(ctime, ctime_extra),
        modified=_time(mtime, mtime_extra),
        generation=generation,
        flags=flags,
        used_bytes=(blocks | blocks_high << 32) * unit,
        block=block,
        inline=_inline(data, block, whole, extra) if flags & _INLINE else None,
        attributes=data[128 + extra :],
        attribute_block=attribute_block | attribute_block_high << 32,
    )


def _time(seconds: int, extra: int) -> int:
    """Return nanoseconds. Two bits of `extra` extend the seconds, the others are nanoseconds."""
    signed = seconds - (1 << 32) if seconds & 0x8000_0000 else seconds
    return (signed + ((extra & 3) << 32)) * 1_000_000_000 + (extra >> 2)


def _inline(data: bytes, block: bytes, size: int, extra: int) -> bytes:
    """Return content in the inode: in the 60 bytes, then in the attribute "system.data"."""
    if size <= len(block):
        return block[:size]
    rest = parse_in_inode(data[128 + extra :]).get("system.data", b"")
    return (block + rest)[:size]


def read_runs(volume: Volume, inode: Inode) -> Iterator[Run]:
    """Yield the parts of a file that are in blocks, in order. Missing parts read as zeros.

    Raises:
        DiskUnreadable: the lists of blocks are damaged.
    """
    by_extents = inode.flags & _EXTENTS
    found = _extents(volume, inode.block, 0, None) if by_extents else _block_lists(volume, inode)
    size, done = volume.block_bytes, 0
    for count, (first, block, length) in enumerate(found, 1):
        offset = first * size
        if offset < done or count > _MOST_RUNS:
            raise DiskUnreadable("a list of blocks is damaged")
        if offset >= inode.size:
            break
        if offset > done:
            yield Run(done, None, offset - done)
        part = min(length * size, inode.size - offset)
        yield Run(offset, None if block is None else block * size, part)
        done = offset + part
    if done < inode.size:
        yield Run(done, None, inode.size - done)


def _extents(
    volume: Volume, data: bytes, level: int, depth: int | None
) -> Iterator[tuple[int, int | None, int]]:
    """Yield first block of the file, block of the volume (None: not written), number of blocks."""
    magic, count, _, own = struct.unpack_from("<HHHH", data)
    if magic != _EXTENT_MAGIC or level > _MOST_DEPTH or (depth is not None and own != depth):
        raise DiskUnreadable("a list of blocks is damaged")
    if 12 + count * 12 > len(data):
        raise DiskUnreadable("a list of blocks is damaged")
    for at in range(12, 12 + count * 12, 12):
        if own:
            _, low, high = struct.unpack_from("<IIH", data, at)
            below = volume.read((low | high << 32) * volume.block_bytes, volume.block_bytes)
            yield from _extents(volume, below, level + 1, own - 1)
            continue
        first, length, high, low = struct.unpack_from("<IHHI", data, at)
        if length > _UNWRITTEN:
            yield first, None, length - _UNWRITTEN
        else:
            yield first, low | high << 32, length


def _block_lists(volume: Volume, inode: Inode) -> Iterator[tuple[int, int | None, int]]:
    """Yield the blocks of ext2 and ext3: twelve, then one list, a list of lists, and one more level."""
    numbers = struct.unpack("<15I", inode.block)
    entries = volume.block_bytes // 4
    end = (inode.size + volume.block_bytes - 1) // volume.block_bytes
    yield from _merge([(at, number) for at, number in enumerate(numbers[:12]) if number])
    first = 12
    for level, number in enumerate(numbers[12:], 1):
        if first >= end:
            return
        yield from _list(volume, number, level, first, end)
        first += entries**level


def _list(
    volume: Volume, number: int, level: int, first: int, end: int
) -> Iterator[tuple[int, int | None, int]]:
    if not number or first >= end:
        return
    entries = volume.block_bytes // 4
    found = struct.unpack(f"<{entries}I", volume.read(number * volume.block_bytes, volume.block_bytes))
    if level == 1:
        yield from _merge([(first + at, block) for at, block in enumerate(found) if block])
        return
    span = entries ** (level - 1)
    for at, block in enumerate(found):
        if block:
            yield from _list(volume, block, level - 1, first + at * span, end)


def _merge(blocks: list[tuple[int, int]]) -> Iterator[tuple[int, int | None, int]]:
    """Join neighbours: file block and volume block follow both."""
    at = 0
    while at < len(blocks):
        first, block = blocks[at]
        length = 1
        while at + length < len(blocks) and blocks[at + length] == (first + length, block + length):
            length += 1
        yield first, block, length
        at += length
