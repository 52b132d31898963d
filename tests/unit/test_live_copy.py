"""QEMU's description of a memory copy, which bough believes only if it makes sense."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator

import pytest

from bough.errors import MachineFailed
from bough.machines.live_copy import LiveCopy, Places
from bough.qemu.ram import PAGE_BYTES, MemoryFile

SIZE = 256 * PAGE_BYTES
BITMAP, PAGES = 4096, 1 << 20
#: Start of QEMU 10.0's stream: its header and its own description. The places of the pages follow.
HEAD = b"QEVM\0\0\0\3" + bytes(20)


def render(
    *, size: int = SIZE, version: int = 1, page: int = PAGE_BYTES, bitmap: int = BITMAP, pages: int = PAGES
) -> bytes:
    return HEAD + b"\3ram" + struct.pack(">QIQQQ", size, version, page, bitmap, pages) + b"\7pc.bios"


@pytest.fixture
def copy() -> Iterator[int]:
    descriptor = os.memfd_create("copy")
    yield descriptor
    os.close(descriptor)


def test_pages_go_where_they_were(copy: int) -> None:
    os.pwrite(copy, render(), 0)
    held = {0, 1, 7, 8, 100, 255}
    bitmap = bytearray(SIZE // PAGE_BYTES // 8)
    for page in held:
        bitmap[page // 8] |= 1 << page % 8
        os.pwrite(copy, bytes((page % 255 + 1,)) * PAGE_BYTES, PAGES + page * PAGE_BYTES)
    # A page with content in the first round, cleared since: only the bitmap shows it.
    os.pwrite(copy, b"x" * PAGE_BYTES, PAGES + 50 * PAGE_BYTES)
    os.pwrite(copy, bitmap, BITMAP)
    places = Places.read(copy, SIZE)
    assert places == Places(PAGES, BITMAP, SIZE // PAGE_BYTES // 8)
    with MemoryFile(SIZE) as file:
        LiveCopy(None, copy, places).move_to(file)  # type: ignore[arg-type]
        template = file.seal()
    for page in range(SIZE // PAGE_BYTES):
        content = os.pread(template.fileno(), PAGE_BYTES, page * PAGE_BYTES)
        assert content == bytes((page % 255 + 1 if page in held else 0,)) * PAGE_BYTES
    assert template.used_bytes() == len(held) * PAGE_BYTES
    assert os.fstat(copy).st_size <= PAGES, "what was moved is there twice"
    template.close()


def test_pages_that_are_not_there(copy: int) -> None:
    os.pwrite(copy, render(), 0)
    os.pwrite(copy, b"\xff" * (SIZE // PAGE_BYTES // 8), BITMAP)
    places = Places.read(copy, SIZE)
    assert places is not None
    with MemoryFile(SIZE) as file, pytest.raises(MachineFailed, match="cut off"):
        LiveCopy(None, copy, places).move_to(file)  # type: ignore[arg-type]
    os.ftruncate(copy, BITMAP + 1)
    with MemoryFile(SIZE) as file, pytest.raises(MachineFailed, match="no complete bitmap"):
        LiveCopy(None, copy, places).move_to(file)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "head",
    [
        b"",
        HEAD,
        render()[:-20],
        render(size=SIZE * 2),
        render(version=2),
        render(page=2 << 20),
        render(bitmap=0),
        render(bitmap=PAGES),
        render(pages=PAGES + 1),
        render(bitmap=1 << 63, pages=(1 << 63) + PAGE_BYTES),
    ],
)
def test_places_that_make_no_sense(copy: int, head: bytes) -> None:
    os.pwrite(copy, head, 0)
    assert Places.read(copy, SIZE) is None
