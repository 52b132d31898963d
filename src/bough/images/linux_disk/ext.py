"""The superblock of an ext2, ext3 or ext4 file system (Linux, Documentation/filesystems/ext4/super.rst)."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import BinaryIO

_SUPERBLOCK = 1024
_HAS_JOURNAL = 0x4  # compatible
_RECOVER, _JOURNAL_DEVICE, _64BIT = 0x4, 0x8, 0x80  # incompatible
_EXT3_ONLY = 0x4 | 0x2  # incompatible features that ext3 knows: recover, file types
_READ_ONLY, _SHARED_BLOCKS = 0x1000, 0x4000  # compatible for reading
_CLEAN, _ERRORS = 1, 2


@dataclass(frozen=True)
class ExtState:
    """The state of the file system.

    Attributes:
        needs_replay: the journal has changes that are not in the file system yet.
        has_errors: the kernel or e2fsck has found damage that is not repaired.
        is_read_only: a flag of the file system forbids to write.
        written_s: time of the last change, in seconds since 1970.
    """

    name: str
    block_bytes: int
    blocks: int
    free_blocks: int
    free_inodes: int
    needs_replay: bool
    has_errors: bool
    is_read_only: bool
    has_outer_journal: bool
    written_s: int

    @property
    def size_bytes(self) -> int:
        return self.blocks * self.block_bytes

    @property
    def free_bytes(self) -> int:
        """The space that root may use, the reserve included."""
        return self.free_blocks * self.block_bytes


def read_ext_state(stream: BinaryIO, offset_bytes: int) -> ExtState | None:
    """Return the state of the file system at `offset_bytes`; None without a plausible superblock."""
    stream.seek(offset_bytes + _SUPERBLOCK)
    data = stream.read(1024)
    if len(data) < 1024 or data[56:58] != b"\x53\xef":
        return None
    blocks, _, free_blocks, free_inodes = struct.unpack_from("<IIII", data, 4)
    (shift,) = struct.unpack_from("<I", data, 24)
    (written_s,) = struct.unpack_from("<I", data, 48)
    (state,) = struct.unpack_from("<H", data, 58)
    compatible, incompatible, reading = struct.unpack_from("<III", data, 92)
    if shift > 6:
        return None
    if incompatible & _64BIT:
        blocks |= struct.unpack_from("<I", data, 0x150)[0] << 32
        free_blocks |= struct.unpack_from("<I", data, 0x158)[0] << 32
    return ExtState(
        name=_name(compatible, incompatible),
        block_bytes=1024 << shift,
        blocks=blocks,
        free_blocks=min(free_blocks, blocks),
        free_inodes=free_inodes,
        needs_replay=bool(incompatible & _RECOVER),
        has_errors=bool(state & _ERRORS) or (not state & _CLEAN and not compatible & _HAS_JOURNAL),
        is_read_only=bool(reading & (_READ_ONLY | _SHARED_BLOCKS)),
        has_outer_journal=bool(incompatible & _JOURNAL_DEVICE),
        written_s=written_s,
    )


def _name(compatible: int, incompatible: int) -> str:
    if incompatible & ~_EXT3_ONLY:
        return "ext4"
    return "ext3" if compatible & _HAS_JOURNAL else "ext2"
