"""Extended attributes, such as ACLs and capabilities: in the inode, a block, or inodes of their own."""

from __future__ import annotations

import struct
from collections.abc import Iterator

_MAGIC = 0xEA020000
_ENTRY = struct.Struct("<BBHIII")
_BLOCK_HEADER_BYTES = 32
#: Numbers of the beginnings of names.
_PREFIXES = {
    1: "user.",
    2: "system.posix_acl_access",
    3: "system.posix_acl_default",
    4: "trusted.",
    6: "security.",
    7: "system.",
    8: "system.richacl",
}
_MOST = 1000


def parse_in_inode(data: bytes) -> dict[str, bytes]:
    """Return the attributes in the rest of an inode, after its fields."""
    if data[:4] != _MAGIC.to_bytes(4, "little"):
        return {}
    return dict(_entries(data[4:], 0))


def parse_block(block: bytes) -> dict[str, bytes]:
    """Return the attributes in a block of their own."""
    if block[:4] != _MAGIC.to_bytes(4, "little"):
        return {}
    return dict(_entries(block, _BLOCK_HEADER_BYTES))


def _entries(data: bytes, at: int) -> Iterator[tuple[str, bytes]]:
    """Yield name and value. The offset of a value counts from the beginning of `data`.

    A value in an inode of its own is told by that inode's number, and the checksum of the value.
    """
    for _ in range(_MOST):
        if at + _ENTRY.size > len(data) or data[at : at + 4] == bytes(4):
            return
        name_bytes, kind, place, inode, length, checksum = _ENTRY.unpack_from(data, at)
        name = data[at + _ENTRY.size : at + _ENTRY.size + name_bytes].decode(errors="backslashreplace")
        own = b"inode %d %d" % (inode, checksum)
        yield _PREFIXES.get(kind, f"{kind}.") + name, own if inode else data[place : place + length]
        at += _ENTRY.size + ((name_bytes + 3) & ~3)
