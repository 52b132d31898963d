"""Directories, links and contents of an ext2, ext3 or ext4 file system. Everything read is untrusted."""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Iterator

from bough.differences.disk import Disk, DiskUnreadable
from bough.differences.ext.attributes import parse_block, parse_in_inode
from bough.differences.ext.geometry import read_geometry
from bough.differences.ext.inode import Inode, Run, parse_inode, read_runs
from bough.differences.ext.journal import find_replaced
from bough.differences.ext.volume import Volume

ROOT = 2
_EXTENTS = 0x80000
_TABLE_BLOCKS = 64
_MOST_CACHED = 512
_MOST_DIRECTORY_BYTES = 512 << 20
_MOST_LINK = 4096


class ExtFiles:
    """An open file system, as it is after a replay of its journal.

    Raises (all methods, too):
        DiskUnreadable: the file system, or the part, is damaged.

    Attributes:
        name: for people: "partition 1".
        damages: parts that could not be read: text -> number.
    """

    def __init__(self, disk: Disk, offset_bytes: int, size_bytes: int, name: str = "") -> None:
        self.name = name
        self.volume = Volume(disk, offset_bytes, size_bytes)
        self.geometry = read_geometry(self.volume)
        self._tables: OrderedDict[int, bytes] = OrderedDict()
        self._groups: dict[int, int] = {}
        self.damages: dict[str, int] = {}
        if self.geometry.needs_replay:
            self._replay()

    @property
    def was_replayed(self) -> bool:
        return bool(self.volume.replaced)

    def _replay(self) -> None:
        if not self.geometry.journal:
            raise DiskUnreadable("its journal is on another disk")
        runs = list(read_runs(self.volume, self.inode(self.geometry.journal)))
        size = self.geometry.block_bytes
        places = [
            (run.offset // size, run.place // size, run.length // size)
            for run in runs
            if run.place is not None
        ]

        def place(block: int) -> int | None:
            for first, start, length in places:
                if first <= block < first + length:
                    return (start + block - first) * size
            return None

        self.volume.replaced = find_replaced(place, self.volume.read, size)
        self._tables.clear()
        self._groups.clear()
        self.geometry = read_geometry(self.volume)

    def inode(self, number: int) -> Inode:
        one = self.geometry
        if not 0 < number <= one.inodes:
            raise DiskUnreadable("a directory names an inode that cannot exist")
        group, row = divmod(number - 1, one.inodes_per_group)
        at = self._group(group) * one.block_bytes + row * one.inode_bytes
        part = one.block_bytes * _TABLE_BLOCKS
        chunk, start = divmod(at, part)
        table = self._tables.get(chunk)
        if table is None:
            length = min(part, self.volume.size_bytes - chunk * part)
            table = self._tables[chunk] = self.volume.read(chunk * part, max(0, length))
            if len(self._tables) > _MOST_CACHED:
                self._tables.popitem(last=False)
        data = table[start : start + one.inode_bytes]
        if len(data) < one.inode_bytes:
            raise DiskUnreadable("a block lies outside of the file system")
        return parse_inode(number, data, one.block_bytes)

    def _group(self, group: int) -> int:
        """Return the first block of a group's inodes."""
        known = self._groups.get(group)
        if known is None:
            one = self.geometry
            data = self.volume.read(one.descriptor_place(group), one.descriptor_bytes)
            known = int.from_bytes(data[8:12], "little")
            if one.descriptor_bytes >= 64:
                known |= int.from_bytes(data[0x28:0x2C], "little") << 32
            self._groups[group] = known
        return known

    def entries(self, directory: Inode) -> dict[bytes, int]:
        """Return name -> inode. A damaged part is left out, and counted in `damages`."""
        if directory.size > _MOST_DIRECTORY_BYTES:
            raise DiskUnreadable("a directory is larger than expected")
        found: dict[bytes, int] = {}
        if directory.inline is not None:
            self._parse_entries(directory.inline[4:60], found)
            self._parse_entries(directory.inline[60:], found)
            return found
        size = self.geometry.block_bytes
        content = self.read(directory, directory.size)
        for at in range(0, len(content), size):
            self._parse_entries(content[at : at + size], found)
        return found

    def _parse_entries(self, block: bytes, found: dict[bytes, int]) -> None:
        at = 0
        while at + 8 <= len(block):
            number, length, name_bytes = struct.unpack_from("<IHB", block, at)
            if length in (0, 65535) and len(block) == 65536:
                length = 65536
            if length < 8 or at + length > len(block) or 8 + name_bytes > length:
                self.note("a directory is damaged")
                return
            if number and name_bytes:
                name = block[at + 8 : at + 8 + name_bytes]
                if name not in (b".", b"..") and b"/" not in name and b"\0" not in name:
                    found[name] = number
            at += length

    def link(self, inode: Inode) -> bytes:
        """Return the target of a symbolic link."""
        if inode.inline is None and inode.size < 60 and not inode.flags & _EXTENTS:
            return inode.block[: inode.size]
        return self.read(inode, _MOST_LINK)

    def attributes(self, inode: Inode) -> dict[str, bytes]:
        """Return the extended attributes, without the file's own content."""
        found = parse_in_inode(inode.attributes)
        if inode.attribute_block:
            size = self.geometry.block_bytes
            found |= parse_block(self.volume.read(inode.attribute_block * size, size))
        found.pop("system.data", None)
        return found

    def runs(self, inode: Inode) -> Iterator[Run]:
        return read_runs(self.volume, inode)

    def read(self, inode: Inode, most_bytes: int) -> bytes:
        """Return the content of a file, cut off at `most_bytes`."""
        if inode.inline is not None:
            return inode.inline[:most_bytes]
        parts: list[bytes] = []
        for run in read_runs(self.volume, inode):
            length = min(run.length, most_bytes - run.offset)
            if length <= 0:
                break
            parts.append(bytes(length) if run.place is None else self.volume.read(run.place, length))
        return b"".join(parts)

    def note(self, damage: str) -> None:
        self.damages[damage] = self.damages.get(damage, 0) + 1
