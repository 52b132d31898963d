"""Edit a device state so that QEMU keeps translated code while loading the state.

When QEMU loads the section "cpu_common" of a vCPU, QEMU assumes that all memory has changed, and drops all
translated code (hw/core/cpu-sysemu.c, cpu_common_post_load). For a rewind to a snapshot the assumption is
wrong. bough removes the section from the stream, and writes the section's two words directly to QEMU's
memory. Marked values, loaded before the pre-warm, show where the words lie.

The stream is QEMU's (migration/savevm.c). A section has type, number, name, instance, version and content.
Only the device knows the length of the content. The type 0x7e and the number again follow.
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
#: Known subsections are not longer.
_MOST_BYTES = 256
#: Bits of an interrupt request with a meaning for QEMU (exec/cpu-all.h, CPU_INTERRUPT_*). QEMU sets some of
#: these bits while loading the other sections.
REQUEST_BITS = 0xFFFF

#: Disk size of the qcow2 image: 512 MiB, mapped by a single second-level table.
_CLUSTER = 1 << 16
_DISK_BYTES = _CLUSTER // 8 * _CLUSTER
_TABLES = 7
#: Name of the internal snapshot that holds the state.
TAG = "state"


@dataclass(frozen=True)
class CpuWords:
    """Two words of a vCPU: whether the vCPU is halted, and the pending interrupt requests."""

    halted: int
    interrupt_request: int


@dataclass(frozen=True)
class Marked:
    """Attributes:
    stream: the state with a marked value in each place.
    marks: the marked values of each vCPU, in the order of the stream.
    """

    stream: bytes
    marks: tuple[CpuWords, ...]


def split_cpus(stream: bytes) -> tuple[bytes, tuple[CpuWords, ...]]:
    """Return the stream without the "cpu_common" sections, and the content of these sections.

    Raises MachineFailed: the sections have an unknown format.
    """
    rest, words, position = bytearray(), [], 0
    for start, at, end in _parts(stream):
        rest += stream[position:start]
        words.append(CpuWords(*_WORDS.unpack_from(stream, at)))
        position = end
    return bytes(rest + stream[position:]), tuple(words)


def mark_cpus(stream: bytes) -> Marked:
    """Return the stream with marks: values absent elsewhere. No mark is zero: QEMU treats each vCPU as
    halted, and runs no vCPU before the true values are restored.

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
    """Return a qcow2 image (docs/interop/qcow2.txt): an empty disk with an internal snapshot holding the
    state, for QEMU's `snapshot-load`.
    """
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
    # The snapshot's first-level table with two entries: the second maps the state, which lies behind the
    # disk.
    struct.pack_into(">QIHHIIQII", image, snapshots, own_table, 2, 1, len(name), 0, 0, 0, len(stream), 16)
    struct.pack_into(f">QQ1s{len(name)}s", image, snapshots + 40, len(stream), _DISK_BYTES, b"1", name)
    copied = 1 << 63
    struct.pack_into(">QQ", image, own_table, 0, states | copied)
    for number in range(count):
        struct.pack_into(">Q", image, states + 8 * number, (_TABLES + number) * _CLUSTER | copied)
    image[_TABLES * _CLUSTER : _TABLES * _CLUSTER + len(stream)] = stream
    return bytes(image)


def _parts(stream: bytes) -> list[tuple[int, int, int]]:
    """Return start, position of the words, and end of each section."""
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
            # The vCPU is taking an exception or has crashed: only this section holds the exception, so the
            # section cannot be removed.
            raise MachineFailed("a vCPU is in the middle of an exception")
        parts.append((start, at, end + 5))
        name = stream.find(_NAME, end)
    if not parts:
        raise MachineFailed("the state of its vCPUs is not there")
    return parts
