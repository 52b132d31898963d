"""The state of a guest's devices, edited so that QEMU keeps its translations when it takes it up.

QEMU takes the part "cpu_common" of each vCPU for the sign that all memory has changed behind its back, and
throws away what it has translated of it (hw/core/cpu-sysemu.c, cpu_common_post_load). In one that is put back
to a snapshot nothing has: that part is left out of what it loads, and the two words in it are put where QEMU
keeps them. Where that is, is found with marked values, which it was given before it was rehearsed.

The stream is QEMU's (migration/savevm.c): sections of a type, a number, a name, an instance and a version,
and of content whose length only its device knows; at its end the type 0x7e and the number again.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass

from bough.errors import MachineFailed

_NAME = b"\x0acpu_common"
_SECTION_FULL, _FOOTER = 4, b"\x7e"
_HEAD = struct.Struct(">II")
_WORDS = struct.Struct(">II")
#: A subsection that is longer is none of those that are known.
_MOST_BYTES = 256
#: Those bits of an interrupt request that mean something to QEMU (exec/cpu-all.h, CPU_INTERRUPT_*). Some of
#: them it sets itself while it loads the rest.
REQUEST_BITS = 0xFFFF

#: Of one qcow2 image: 512 MiB, the size that one table of its second level maps.
_CLUSTER = 1 << 16
_DISK_BYTES = _CLUSTER // 8 * _CLUSTER
_TABLES = 7
#: What the state is called in its file.
TAG = "state"


@dataclass(frozen=True)
class CpuWords:
    """Of one vCPU: whether it waits for an interrupt, and which it has been asked to take."""

    halted: int
    interrupt_request: int


@dataclass(frozen=True)
class Marked:
    """Attributes:
    stream: with a marked value in each place.
    marks: of each vCPU, in the order of the stream.
    """

    stream: bytes
    marks: tuple[CpuWords, ...]


def split_cpus(stream: bytes) -> tuple[bytes, tuple[CpuWords, ...]]:
    """The stream without those parts, and what they say.

    Raises MachineFailed: they are none that are known.
    """
    rest, words, position = bytearray(), [], 0
    for start, at, end in _parts(stream):
        rest += stream[position:start]
        words.append(CpuWords(*_WORDS.unpack_from(stream, at)))
        position = end
    return bytes(rest + stream[position:]), tuple(words)


def mark_cpus(stream: bytes) -> Marked:
    """Values that are found nowhere else. Not zero: QEMU takes each vCPU for one that waits. Nothing of it
    is to run before the true values are put back.

    Raises MachineFailed: as `split_cpus`.
    """
    edited, marks = bytearray(stream), []
    for _, at, _ in _parts(stream):
        halted, request = struct.unpack("=II", os.urandom(8))
        mark = CpuWords(halted | 1 << 31, (request | 1 << 31) & ~REQUEST_BITS)
        _WORDS.pack_into(edited, at, mark.halted, mark.interrupt_request)
        marks.append(mark)
    return Marked(bytes(edited), tuple(marks))


def render_state_file(stream: bytes) -> bytes:
    """A qcow2 image (docs/interop/qcow2.txt) of an empty disk with one snapshot, of which this is the state:
    what QEMU's own way to go back to one, `snapshot-load`, takes."""
    count = -(-len(stream) // _CLUSTER)
    if count > _CLUSTER // 8:
        raise MachineFailed("the state of its devices is too large")
    refcounts, references, table, snapshots, own_table, states = (
        number * _CLUSTER for number in range(1, _TABLES)
    )
    image = bytearray((_TABLES + count) * _CLUSTER)
    # Magic, version 3, no backing file, 64 KiB clusters, size, no encryption, first table, refcounts,
    # snapshots, no features, 16 bit refcounts, length of this header.
    struct.pack_into(
        ">4sIQIIQIIQQIIQQQQII", image, 0,
        *(b"QFI\xfb", 3, 0, 0, 16, _DISK_BYTES, 0, 1, table, refcounts, 1, 1, snapshots, 0, 0, 0, 4, 104),
    )  # fmt: skip
    struct.pack_into(">Q", image, refcounts, references)
    for cluster in range(_TABLES + count):
        struct.pack_into(">H", image, references + 2 * cluster, 1)
    name = TAG.encode()
    # Its own first table, of two entries: the second is of what lies behind the disk, the state.
    struct.pack_into(">QIHHIIQII", image, snapshots, own_table, 2, 1, len(name), 0, 0, 0, len(stream), 16)
    struct.pack_into(f">QQ1s{len(name)}s", image, snapshots + 40, len(stream), _DISK_BYTES, b"1", name)
    copied = 1 << 63
    struct.pack_into(">QQ", image, own_table, 0, states | copied)
    for number in range(count):
        struct.pack_into(">Q", image, states + 8 * number, (_TABLES + number) * _CLUSTER | copied)
    image[_TABLES * _CLUSTER : _TABLES * _CLUSTER + len(stream)] = stream
    return bytes(image)


def _parts(stream: bytes) -> list[tuple[int, int, int]]:
    """Of each: where it begins, where its words are, where it ends."""
    parts = []
    name = stream.find(_NAME)
    while name >= 0:
        start = name - 5
        number = stream[start + 1 : name]
        at = name + len(_NAME) + _HEAD.size
        end = stream.find(_FOOTER + number, at + _WORDS.size, at + _MOST_BYTES)
        if start < 0 or stream[start] != _SECTION_FULL or end < 0:
            raise MachineFailed("the state of its vCPUs is not as it is known here")
        if end != at + _WORDS.size:
            # It is just taking an exception, or has crashed: that is kept in there, and nowhere else.
            raise MachineFailed("a vCPU is in the middle of an exception")
        parts.append((start, at, end + 5))
        name = stream.find(_NAME, end)
    if not parts:
        raise MachineFailed("the state of its vCPUs is not there")
    return parts
