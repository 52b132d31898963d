"""The superblock and the group descriptors."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from bough.differences.disk import DiskUnreadable
from bough.differences.ext.volume import Volume

#: Incompatible features that the reader knows: filetype, recover, meta_bg, extents, 64bit, mmp, flex_bg,
#: ea_inode, csum_seed, large_dir, inline_data, encrypt, casefold.
_KNOWN = 0x2 | 0x4 | 0x10 | 0x40 | 0x80 | 0x100 | 0x200 | 0x400 | 0x2000 | 0x4000 | 0x8000 | 0x10000 | 0x20000
NEEDS_REPLAY = 0x4
_META_GROUPS, _WIDE = 0x10, 0x80
_HAS_JOURNAL, _SPARSE_2 = 0x4, 0x200
_SPARSE = 0x1
_MOST_INODES = 1 << 32


@dataclass(frozen=True)
class Geometry:
    """Where a file system has its inodes.

    Attributes:
        needs_replay: the journal has changes that are not in their places.
        journal: inode of the journal; 0: none in this file system.
        label, identity: name and UUID; the UUID as text.
    """

    block_bytes: int
    blocks: int
    inodes: int
    inodes_per_group: int
    blocks_per_group: int
    inode_bytes: int
    first_block: int
    descriptor_bytes: int
    first_meta_group: int
    is_sparse: bool
    backup_groups: tuple[int, int] | None
    needs_replay: bool
    has_journal: bool
    journal: int
    label: str
    identity: str

    def descriptor_place(self, group: int) -> int:
        """Return the offset of a group's descriptor."""
        per_block = self.block_bytes // self.descriptor_bytes
        row = group // per_block
        block = 1024 // self.block_bytes + 1 + row
        if row >= self.first_meta_group:
            first = row * per_block
            block = first * self.blocks_per_group + self.first_block + self._has_superblock(first)
            # The first superblock is in block 1 of 1 KiB, also if the first group begins with block 0.
            block += row == 0 and self.block_bytes == 1024 and self.first_block == 0
        return block * self.block_bytes + group % per_block * self.descriptor_bytes

    def _has_superblock(self, group: int) -> bool:
        if group == 0:
            return True
        if self.backup_groups is not None:
            return group in self.backup_groups
        return not self.is_sparse or group == 1 or any(_is_power(group, base) for base in (3, 5, 7))


def _is_power(number: int, base: int) -> bool:
    while number % base == 0:
        number //= base
    return number == 1


def read_geometry(volume: Volume) -> Geometry:
    """Return the geometry, and set the volume's size of a block. Raises DiskUnreadable."""
    block = volume.read(1024, 1024)
    if block[0x38:0x3A] != b"\x53\xef":
        raise DiskUnreadable("it has no superblock of ext4")
    compatible, incompatible, read_only = struct.unpack_from("<III", block, 0x5C)
    (revision,) = struct.unpack_from("<I", block, 0x4C)
    if revision and incompatible & ~_KNOWN:
        raise DiskUnreadable("it has features of a newer Linux")
    inodes, blocks, _, _, _, first_block, log_size = struct.unpack_from("<7I", block, 0)
    blocks_per_group, _, inodes_per_group = struct.unpack_from("<III", block, 0x20)
    inode_bytes = struct.unpack_from("<H", block, 0x58)[0] if revision else 128
    wide = bool(incompatible & _WIDE)
    descriptor_bytes = struct.unpack_from("<H", block, 0xFE)[0] if wide else 32
    if wide:
        blocks |= struct.unpack_from("<I", block, 0x150)[0] << 32
    first_meta = struct.unpack_from("<I", block, 0x104)[0] if incompatible & _META_GROUPS else 1 << 40
    geometry = Geometry(
        block_bytes=1024 << min(log_size, 16),
        blocks=blocks,
        inodes=inodes,
        inodes_per_group=inodes_per_group,
        blocks_per_group=blocks_per_group,
        inode_bytes=inode_bytes,
        first_block=first_block,
        descriptor_bytes=descriptor_bytes,
        first_meta_group=first_meta,
        is_sparse=bool(read_only & _SPARSE),
        backup_groups=struct.unpack_from("<II", block, 0x24C) if compatible & _SPARSE_2 else None,
        needs_replay=bool(incompatible & NEEDS_REPLAY),
        has_journal=bool(compatible & _HAS_JOURNAL),
        journal=struct.unpack_from("<I", block, 0xE0)[0],
        label=block[0x78:0x88].rstrip(b"\0").decode(errors="replace"),
        identity=_as_text(block[0x68:0x78]),
    )
    _check(geometry)
    volume.block_bytes = geometry.block_bytes
    return geometry


def _as_text(identity: bytes) -> str:
    digits = identity.hex()
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def _check(one: Geometry) -> None:
    fits = (
        1024 <= one.block_bytes <= 65536
        and 128 <= one.inode_bytes <= one.block_bytes
        and one.inode_bytes & (one.inode_bytes - 1) == 0
        and 32 <= one.descriptor_bytes <= 1024
        and one.block_bytes % one.descriptor_bytes == 0
        and 0 < one.inodes_per_group <= 8 * one.block_bytes * 16
        and one.blocks_per_group > 0
        and 0 < one.inodes <= _MOST_INODES
        and one.first_block <= 1
    )
    if not fits:
        raise DiskUnreadable("its superblock is damaged")
