"""Recognize a file system, or another use of a volume, by its magic bytes. Reads some kilobytes at most."""

from __future__ import annotations

from enum import Enum
from typing import BinaryIO


class Kind(Enum):
    """The content of a volume. SPREAD: an LVM volume in several pieces, on several disks, or not linear."""

    EXT = "ext"
    XFS = "xfs"
    BTRFS = "btrfs"
    F2FS = "f2fs"
    SQUASHFS = "squashfs"
    EROFS = "erofs"
    NTFS = "ntfs"
    FAT = "vfat"
    BITLOCKER = "BitLocker"
    LUKS = "LUKS"
    LVM = "LVM"
    SPREAD = "LVM volume"
    RAID = "Linux RAID"
    BCACHE = "bcache"
    ZFS = "zfs"
    SWAP = "swap"
    HIBERNATED = "swap with a hibernated system"


#: Offset of the magic bytes, the bytes, and their meaning. The first match counts. The order is by strength:
#: a FAT's bytes may be left over below a newer file system.
_MAGIC: tuple[tuple[int, bytes, Kind], ...] = (
    (0, b"LUKS\xba\xbe", Kind.LUKS),
    (512, b"LABELONE", Kind.LVM),
    (0, b"LABELONE", Kind.LVM),
    (0, b"XFSB", Kind.XFS),
    (0x10040, b"_BHRfS_M", Kind.BTRFS),
    (0, b"hsqs", Kind.SQUASHFS),
    (1024, b"\xe2\xe1\xf5\xe0", Kind.EROFS),
    (1024, b"\x10\x20\xf5\xf2", Kind.F2FS),
    (4096, b"\xfc\x4e\x2b\xa9", Kind.RAID),
    (0, b"\xfc\x4e\x2b\xa9", Kind.RAID),
    (4096 + 24, bytes.fromhex("c68573f64e1a45ca8265f57f48ba6d81"), Kind.BCACHE),
    (4086, b"SWAPSPACE2", Kind.SWAP),
    (4086, b"S1SUSPEND", Kind.HIBERNATED),
    (4086, b"S2SUSPEND", Kind.HIBERNATED),
    (4086, b"ULSUSPEND", Kind.HIBERNATED),
    (4086, b"LINHIB0001", Kind.HIBERNATED),
    (3, b"-FVE-FS-", Kind.BITLOCKER),
    (3, b"NTFS    ", Kind.NTFS),
    (1024 + 56, b"\x53\xef", Kind.EXT),
    (54, b"FAT", Kind.FAT),
    (82, b"FAT", Kind.FAT),
)
#: An uberblock of ZFS, in the first label's ring (little-endian, then big-endian).
_ZFS = (b"\x0c\xb1\xba\x00\x00\x00\x00\x00", b"\x00\x00\x00\x00\x00\xba\xb1\x0c")
_HEAD_BYTES = 0x10040 + 8


def recognize(stream: BinaryIO, offset_bytes: int, size_bytes: int) -> Kind | None:
    """Return the content of a volume; None if nothing is recognized."""
    stream.seek(offset_bytes)
    head = stream.read(min(_HEAD_BYTES, size_bytes))
    for place, magic, kind in _MAGIC:
        if head[place : place + len(magic)] == magic:
            return kind
    return Kind.ZFS if _is_zfs(stream, offset_bytes, size_bytes) else None


def _is_zfs(stream: BinaryIO, offset_bytes: int, size_bytes: int) -> bool:
    """Return whether the first label of ZFS contains an uberblock (every 1 KiB from 128 KiB on)."""
    if size_bytes < 64 << 20:
        return False
    stream.seek(offset_bytes + 128 * 1024)
    ring = stream.read(128 * 1024)
    return any(ring.startswith(_ZFS, place) for place in range(0, len(ring), 1024))
