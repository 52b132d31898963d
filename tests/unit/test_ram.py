"""Reading guest memory from a running process: here a Python process with a pattern in memory."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from bough.errors import MachineFailed
from bough.qemu.ram import PAGE_BYTES, GuestRam, MemoryFile, different_extents, size_of

SIZE = 64 << 20
#: Private memory as QEMU's, with untouched parts. Each touched page contains its own number.
HOLDER = f"""
import ctypes, mmap, struct
memory = mmap.mmap(-1, {SIZE}, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory.madvise(mmap.MADV_NOHUGEPAGE)
for page in range({SIZE} // {PAGE_BYTES}):
    if page % 8:
        memory[page * {PAGE_BYTES}:page * {PAGE_BYTES} + 8] = struct.pack("Q", page)
print(ctypes.addressof(ctypes.c_char.from_buffer(memory)), flush=True)
input()
"""


@pytest.fixture
def ram() -> Iterator[GuestRam]:
    with subprocess.Popen([sys.executable, "-c", HOLDER], stdin=-1, stdout=-1, text=True) as process:
        assert process.stdout is not None
        yield GuestRam(process.pid, int(process.stdout.readline()), SIZE)
        process.kill()


@pytest.mark.parametrize("hurry", [False, True])
def test_what_was_written_is_copied_and_nothing_else(ram: GuestRam, hurry: bool) -> None:
    extents = ram.private_extents()
    assert size_of(extents) == SIZE // 8 * 7
    with MemoryFile(SIZE) as file:
        file.read_process(ram.pid, ram.address, extents, hurry=hurry)
        template = file.seal()
    assert size_of(template.extents()) == SIZE // 8 * 7
    for page in range(SIZE // PAGE_BYTES):
        told = os.pread(template.fileno(), 8, page * PAGE_BYTES)
        assert int.from_bytes(told, "little") == (page if page % 8 else 0)
    template.close()


@pytest.mark.parametrize("hurry", [False, True])
def test_a_process_that_is_not_where_it_said(ram: GuestRam, hurry: bool) -> None:
    with MemoryFile(SIZE) as file, pytest.raises(MachineFailed, match="could not be read"):
        file.read_process(ram.pid, ram.address + SIZE // 2, [(0, SIZE)], hurry=hurry)


def test_what_differs() -> None:
    with MemoryFile(8 * PAGE_BYTES) as one, MemoryFile(8 * PAGE_BYTES) as two:
        for at in (0, PAGE_BYTES - 1, 3 * PAGE_BYTES + 300, 7 * PAGE_BYTES):
            one.buffer[at] = 1
        old, new = one.promise(), two.promise()
        whole = [(0, 8 * PAGE_BYTES)]
        assert different_extents(new, old, whole) == [
            (0, PAGE_BYTES),
            (3 * PAGE_BYTES, PAGE_BYTES),
            (7 * PAGE_BYTES, PAGE_BYTES),
        ]
        assert different_extents(new, old, whole, piece_bytes=256) == [
            (0, 256),
            (PAGE_BYTES - 256, 256),
            (3 * PAGE_BYTES + 256, 256),
            (7 * PAGE_BYTES, 256),
        ]
        assert different_extents(new, old, [(PAGE_BYTES, 6 * PAGE_BYTES)]) == [(3 * PAGE_BYTES, PAGE_BYTES)]
        assert different_extents(new, new, whole) == []
