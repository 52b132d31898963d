"""Boot entries in a UEFI machine's variables, as an installed system writes them.

The store is EDK2's: a firmware volume with authenticated variables in sequence (edk2:
MdeModulePkg/Include/Guid/VariableFormat.h). Load option and device path follow the UEFI specification 3.1.3
and 10.3. The path starts at the partition ("short form", 3.1.2), so that the path is valid on any controller.
"""

from __future__ import annotations

import struct
import uuid
from dataclasses import dataclass

_VOLUME_SIGNATURE = b"_FVH"
_AUTHENTICATED = uuid.UUID("aaf32c78-947b-439a-a180-2e144ec37792")
_GLOBAL_VARIABLE = uuid.UUID("8be4df61-93ca-11d2-aa0d-00e098032b8c")
_START, _ADDED, _ERASED = 0x55AA, 0x3F, 0xFF
#: Cleared bit of a variable's state: the variable is deleted.
_DELETED, _STATE_OFFSET = 0xFD, 2
#: Persistent, and readable before and after the operating system has started.
_ATTRIBUTES = 7
_STORE_HEADER = struct.Struct("<16sIBBHI")
_FORMATTED, _HEALTHY = 0x5A, 0xFE
_VARIABLE = struct.Struct("<HBBIQ16sIII16s")
_ACTIVE = 1


@dataclass(frozen=True)
class BootFile:
    r"""A program for UEFI on a partition.

    Attributes:
        path: as UEFI writes it: "\EFI\debian\grubx64.efi".
        identity: of the partition: its GUID, 16 bytes, or the 4 bytes of an MBR's disk.
    """

    path: str
    partition: int
    first_sector: int
    sectors: int
    identity: bytes


def add_boot_entry(store: bytes, file: BootFile, title: str) -> bytes:
    """Return the variables with an entry that boots `file` first.

    A store with keys for Secure Boot has variables already, even a boot order of its own.

    Raises:
        ValueError: `store` is not EDK2's, is damaged, or is too small.
    """
    data = bytearray(store)
    start, end = _find_room(store)
    known, start = _read_variables(store, start, end)
    for offset in known.get("BootOrder", ()):
        data[offset + _STATE_OFFSET] &= _DELETED
    number = next(number for number in range(1 << 16) if f"Boot{number:04X}" not in known)
    order = struct.pack("<H", number)
    for name, value in ((f"Boot{number:04X}", _load_option(file, title)), ("BootOrder", order)):
        variable = _variable(name, value)
        if start + len(variable) > end:
            raise ValueError("no room for a boot entry")
        data[start : start + len(variable)] = variable
        start = (start + len(variable) + 3) & ~3
    return bytes(data)


def _find_room(store: bytes) -> tuple[int, int]:
    """Return the offset of the first variable, and the end of the store."""
    if len(store) < 64 or store[40:44] != _VOLUME_SIGNATURE:
        raise ValueError("no firmware volume")
    (begin,) = struct.unpack_from("<H", store, 48)
    if begin + _STORE_HEADER.size > len(store):
        raise ValueError("no variable store")
    guid, size, format, state, _, _ = _STORE_HEADER.unpack_from(store, begin)
    if uuid.UUID(bytes_le=guid) != _AUTHENTICATED or (format, state) != (_FORMATTED, _HEALTHY):
        raise ValueError("a variable store of another kind")
    return begin + _STORE_HEADER.size, min(begin + size, len(store))


def _read_variables(store: bytes, start: int, end: int) -> tuple[dict[str, list[int]], int]:
    """Return the offsets of UEFI's global variables by name, and the offset behind the last variable.

    Raises:
        ValueError: the store is damaged.
    """
    found: dict[str, list[int]] = {}
    while start + _VARIABLE.size <= end:
        mark, _, _, _, _, _, _, name_bytes, value_bytes, guid = _VARIABLE.unpack_from(store, start)
        if mark != _START:
            break
        text = store[start + _VARIABLE.size :][:name_bytes].decode("utf-16-le", errors="replace")
        if guid == _GLOBAL_VARIABLE.bytes_le:
            found.setdefault(text.rstrip("\0"), []).append(start)
        start = (start + _VARIABLE.size + name_bytes + value_bytes + 3) & ~3
    if start > end or any(byte != _ERASED for byte in store[start : min(start + 4, end)]):
        raise ValueError("a damaged variable store")
    return found, start


def _variable(name: str, value: bytes) -> bytes:
    text = name.encode("utf-16-le") + b"\0\0"
    guid = _GLOBAL_VARIABLE.bytes_le
    header = _VARIABLE.pack(_START, _ADDED, 0, _ATTRIBUTES, 0, bytes(16), 0, len(text), len(value), guid)
    return header + text + value


def _load_option(file: BootFile, title: str) -> bytes:
    path = _device_path(file)
    return struct.pack("<IH", _ACTIVE, len(path)) + title.encode("utf-16-le") + b"\0\0" + path


def _device_path(file: BootFile) -> bytes:
    is_gpt = len(file.identity) == 16
    kind = (2, 2) if is_gpt else (1, 1)
    place = struct.pack("<IQQ", file.partition, file.first_sector, file.sectors)
    disk = _node(4, 1, place + file.identity.ljust(16, b"\0") + bytes(kind))
    name = _node(4, 4, file.path.encode("utf-16-le") + b"\0\0")
    return disk + name + _node(0x7F, 0xFF, b"")


def _node(kind: int, subtype: int, content: bytes) -> bytes:
    return struct.pack("<BBH", kind, subtype, 4 + len(content)) + content
