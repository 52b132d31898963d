"""The processor and the C library of a program (ELF: System V ABI, "Object Files"). All reads are bounded."""

from __future__ import annotations

import struct
from dataclasses import dataclass

#: e_machine -> name of the architecture.
_MACHINES = {3: "i386", 40: "arm", 62: "x86_64", 183: "aarch64", 243: "riscv64", 22: "s390x", 21: "ppc64"}
_LIBCS = (("ld-musl", "musl"), ("ld-uClibc", "uclibc"), ("ld-linux", "glibc"), ("ld64", "glibc"))
_LOADER = 3  # PT_INTERP
_MOST_HEADERS = 64


@dataclass(frozen=True)
class Program:
    """A program.

    Attributes:
        arch: the processor; None if bough does not know it.
        libc: glibc, musl, uclibc, static or unknown.
    """

    arch: str | None
    libc: str


def parse_elf(data: bytes) -> Program | None:
    """Return the program's kind; None for other files, such as a script."""
    if len(data) < 64 or not data.startswith(b"\x7fELF") or data[4] not in (1, 2) or data[5] not in (1, 2):
        return None
    order = "<" if data[5] == 1 else ">"
    (machine,) = struct.unpack_from(f"{order}H", data, 18)
    return Program(_MACHINES.get(machine), _libc_of(data, order))


def _libc_of(data: bytes, order: str) -> str:
    if data[4] == 2:
        (place,) = struct.unpack_from(f"{order}Q", data, 32)
        size, count = struct.unpack_from(f"{order}HH", data, 54)
        offset_at, length_at, number = 8, 32, "Q"
    else:
        (place,) = struct.unpack_from(f"{order}I", data, 28)
        size, count = struct.unpack_from(f"{order}HH", data, 42)
        offset_at, length_at, number = 4, 16, "I"
    for index in range(min(count, _MOST_HEADERS)):
        header = data[place + index * size : place + (index + 1) * size]
        if len(header) < 40 and len(header) < length_at + struct.calcsize(number):
            return "unknown"
        if struct.unpack_from(f"{order}I", header)[0] == _LOADER:
            (offset,) = struct.unpack_from(f"{order}{number}", header, offset_at)
            (length,) = struct.unpack_from(f"{order}{number}", header, length_at)
            return _name_libc(data[offset : offset + min(length, 255)])
    return "static"


def _name_libc(loader: bytes) -> str:
    name = loader.rstrip(b"\0").rpartition(b"/")[2].decode(errors="replace")
    return next((libc for beginning, libc in _LIBCS if name.startswith(beginning)), "unknown")
