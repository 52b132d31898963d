"""The screen's content beside the state of the devices: whole, or refused. A bundle's content
may be hostile.
"""

from __future__ import annotations

import contextlib
import os
import struct
import subprocess
import sys
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bough.machines.memory import MOST_VIDEO_BYTES
from bough.machines.video import Video, join_devices, split_devices
from bough.qemu.ram import PAGE_BYTES, GuestRam

MARK = b"bough-video-1\0\0\0"
VIDEO = Video([(0, PAGE_BYTES), (3 * PAGE_BYTES, 2 * PAGE_BYTES)], os.urandom(3 * PAGE_BYTES))


def pack(data: bytes) -> bytes:
    packed = zlib.compress(data)
    return b"QEVM" + packed + struct.pack("<Q", len(packed)) + MARK


def table(*extents: tuple[int, int]) -> bytes:
    return struct.pack("<Q", len(extents)) + b"".join(struct.pack("<2Q", *extent) for extent in extents)


def test_both_parts_come_back() -> None:
    assert split_devices(join_devices(b"QEVM state", VIDEO)) == (b"QEVM state", VIDEO)


@pytest.mark.parametrize("video", [None, Video([], b"")])
def test_without_a_screen_it_is_qemus_alone(video: Video | None) -> None:
    assert join_devices(b"QEVM state", video) == b"QEVM state"
    assert split_devices(b"QEVM state") == (b"QEVM state", None)
    assert split_devices(b"") == (b"", None)


@pytest.mark.parametrize(
    ("devices", "says"),
    [
        (struct.pack("<Q", 1 << 63) + MARK, "longer than the whole file"),
        (b"no zlib" + struct.pack("<Q", 7) + MARK, "cannot be unpacked"),
        (zlib.compress(b"x" * 100)[:7] + struct.pack("<Q", 7) + MARK, "end where it should"),
        (pack(b""), "no table"),
        (pack(table()), "no table"),
        (pack(struct.pack("<Q", 1 << 60)), "no table"),
        (pack(table((0, PAGE_BYTES))), "as long as its table"),
        (pack(table((1, PAGE_BYTES)) + bytes(PAGE_BYTES)), "no whole pages"),
        (pack(table((0, 0))), "no whole pages"),
        (pack(table((PAGE_BYTES, PAGE_BYTES), (0, PAGE_BYTES)) + bytes(2 * PAGE_BYTES)), "no whole pages"),
        (pack(table((MOST_VIDEO_BYTES, PAGE_BYTES)) + bytes(PAGE_BYTES)), "as long as its table"),
        (pack(bytes(3 * MOST_VIDEO_BYTES)), "end where it should"),
    ],
)
def test_what_was_altered_is_refused(devices: bytes, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        split_devices(devices)


@given(st.binary(max_size=200), st.integers(0, 250))
def test_any_bytes_are_one_or_the_other(data: bytes, size: int) -> None:
    with contextlib.suppress(ValueError):
        split_devices(data + struct.pack("<Q", size) + MARK)


def test_it_is_put_into_another_process() -> None:
    code = (
        "import ctypes, mmap, sys\n"
        "memory = mmap.mmap(-1, 8 * 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)\n"
        "print(ctypes.addressof(ctypes.c_char.from_buffer(memory)), flush=True)\n"
        "sys.stdin.readline()\n"
        "sys.stdout.buffer.write(memory[:])\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        memory = GuestRam(process.pid, int(process.stdout.readline()), 8 * PAGE_BYTES)
        memory.write(VIDEO.extents, VIDEO.content)
        assert Video.read(memory) == VIDEO
        found, _ = process.communicate(b"\n")
    assert found[:PAGE_BYTES] == VIDEO.content[:PAGE_BYTES]
    assert found[3 * PAGE_BYTES : 5 * PAGE_BYTES] == VIDEO.content[PAGE_BYTES:]
    assert not any(found[5 * PAGE_BYTES :])
