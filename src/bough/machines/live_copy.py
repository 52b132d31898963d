"""Copy the memory of a running guest with QEMU, which tracks the guest's writes.

QEMU 9.0 and later can write a migration to a file in which each page of RAM has a fixed place (capability
mapped-ram; QEMU's docs/devel/migration/mapped-ram.rst). QEMU copies all pages, then again the pages written
since, and so on, until few are left. Only the last pages remain to be copied while the vCPUs are paused. The
migration has no receiver: afterwards the machine continues in the same QEMU.

    follow      QEMU copies and tracks writes; the guest runs
    stop
    catch_up    copies the last written pages; meanwhile the caller saves devices and switches disks
    finish
    cont
    move_to     moves the pages from the migration's file to a memory file

QEMU's file is untrusted: the reported places of the pages are checked once, and bounded.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any

from bough.errors import BoughError, MachineFailed
from bough.qemu.argv import RAM_ID
from bough.qemu.qmp import Qmp
from bough.qemu.ram import PAGE_BYTES, Extent, MemoryFile
from bough.tasks import finish

#: The first QEMU with mapped-ram.
OLDEST = (9, 0)
_FD_SET = 2
#: Largest rest to copy during the pause, if the guest lets the rest become so small.
_LITTLE_BYTES = 4 << 20
#: End of the wait for a guest that writes faster than QEMU copies.
_MOST_ROUNDS = 6
#: Rest of the first round at which the guest's preparation begins: QEMU copies the rest meanwhile.
_NEARLY_BYTES = 32 << 20
_POLL_S = 0.01
_POLL_SOON_S = 0.002
_POLL_PAUSED_S = 0.001
_STALLED_S = 30.0
_FINISH_S = 60.0
#: The highest value for QEMU: all remaining pages are copied in the pause.
_MOST_DOWNTIME_MS = 2_000_000
_UNTIL_CANCELLED_S = 30.0
#: Speed until the places of the pages are known.
_SLOW_BYTES_PER_S = 1 << 20
_PLACES_S = 5.0
#: Names and sizes of QEMU's memory blocks come before the first page, some 100 bytes each.
_HEAD_BYTES = 64 << 10
#: Header of one block of RAM, as QEMU's mapped_ram_setup_ramblock() writes it: version, page size, offset of
#: the bitmap of its pages, offset of the pages.
_PLACES = struct.Struct(">IQQQ")
_PLACES_VERSION = 1
#: Room for the bitmap and for QEMU's alignment of the pages.
_MOST_BEFORE_BYTES = 64 << 20
_BITS = [f"{byte:08b}"[::-1].encode() for byte in range(256)]
#: Size of one move; the source's memory is then returned to the host.
_MOVE_BYTES = 64 << 20

Prepare = Callable[[], Awaitable[None]]

_CAPABILITIES = ("mapped-ram", "pause-before-switchover")
_ENDED = ("completed", "failed", "cancelled")


class CannotFollow(Exception):
    """This QEMU cannot make a live copy. The machine runs as before; bough can copy the memory
    from outside.
    """


class LiveCopy:
    """A running copy. Made by `live_copy`."""

    def __init__(self, qmp: Qmp, descriptor: int, places: Places) -> None:
        self._qmp = qmp
        self._descriptor = descriptor
        self._places = places

    async def follow(self, prepare: Prepare) -> None:
        """Wait until little is left to copy, or until more waiting would not help.

        Args:
            prepare: the guest's preparation right before the pause; started when most is copied. If nothing
                at all is left to copy, QEMU pauses the guest by itself and does not wait for the preparation.

        Raises:
            CannotFollow: QEMU refused or gave up.
        """
        preparing: asyncio.Future[None] | None = None
        before, deadline = None, 0.0
        try:
            while True:
                told = await self._told()
                if told.get("status") == "pre-switchover":
                    return
                rounds, left = _progress(told)
                if (rounds, left) != before:
                    before, deadline = (rounds, left), time.monotonic() + _STALLED_S
                elif time.monotonic() > deadline:
                    raise CannotFollow("QEMU stopped copying")
                # In the first round, the rest includes pages that QEMU has not examined.
                if preparing is None and (rounds > 1 or left <= _NEARLY_BYTES):
                    preparing = asyncio.ensure_future(prepare())
                enough = rounds > 1 and (left <= _LITTLE_BYTES or rounds > _MOST_ROUNDS)
                if enough and preparing is not None and preparing.done():
                    preparing.result()
                    return
                await asyncio.sleep(_POLL_S if preparing is None else _POLL_SOON_S)
        finally:
            if preparing is not None and not preparing.done():
                preparing.cancel()
                await finish(asyncio.wait((preparing,)))

    async def catch_up(self) -> None:
        """Copy the last written pages. The vCPUs are paused.

        Raises:
            MachineFailed: QEMU gave up.
        """
        await self._qmp.execute("migrate-set-parameters", **_downtime(_MOST_DOWNTIME_MS))
        await self._until("pre-switchover")

    async def finish(self) -> None:
        """Complete the migration after `catch_up`. QEMU releases the disks until `cont`.

        Raises:
            MachineFailed: QEMU gave up.
        """
        await self._qmp.execute("migrate-continue", state="pre-switchover")
        await self._until("completed")
        await _until_settled(self._qmp)

    async def _until(self, status: str) -> None:
        deadline = time.monotonic() + _FINISH_S
        while True:
            try:
                if (await self._told()).get("status") == status:
                    return
            except CannotFollow as error:
                raise MachineFailed(f"its memory could not be copied: {error}") from error
            if time.monotonic() > deadline:
                raise MachineFailed(f"its memory was not copied within {_FINISH_S:g} s")
            await asyncio.sleep(_POLL_PAUSED_S)

    def move_to(self, file: MemoryFile) -> None:
        """Move the copied pages to a memory file. The source is empty afterwards.

        Raises:
            MachineFailed: QEMU's file is malformed.
        """
        places = self._places
        bitmap = os.pread(self._descriptor, places.bitmap_bytes, places.bitmap)
        if len(bitmap) != places.bitmap_bytes:
            raise MachineFailed("QEMU's copy of its guest's memory has no complete bitmap")
        # Begin at the end and cut off each moved piece: the host never holds a third copy of the guest's
        # memory.
        for start, length in reversed(list(_pieces(_extents(bitmap)))):
            try:
                file.copy_in(self._descriptor, places.pages + start, start, length)
            except ValueError:
                raise MachineFailed("QEMU's copy of its guest's memory is cut off") from None
            os.ftruncate(self._descriptor, places.pages + start)

    async def _told(self) -> dict[str, Any]:
        told = await self._qmp.query("query-migrate")
        if told.get("status") in ("failed", "cancelled"):
            raise CannotFollow(str(told.get("error-desc", told["status"]))[:500])
        return told


def _progress(told: dict[str, Any]) -> tuple[int, int]:
    """Return the number of the round, and the bytes left in it."""
    ram = told.get("ram")
    counts = ram if isinstance(ram, dict) else {}
    rounds, left = counts.get("dirty-sync-count"), counts.get("remaining")
    # QEMU reports no numbers before the start.
    return (rounds, left) if isinstance(rounds, int) and isinstance(left, int) and rounds else (0, 1 << 63)


@dataclass(frozen=True)
class Places:
    """The guest's RAM in the file: offset of the first page, and a bitmap with one bit for each page with
    content.
    """

    pages: int
    bitmap: int
    bitmap_bytes: int

    @classmethod
    def read(cls, descriptor: int, size_bytes: int) -> Places | None:
        """Return the places, or None if missing or implausible."""
        head = os.pread(descriptor, _HEAD_BYTES, 0)
        name = RAM_ID.encode()
        mark = bytes((len(name),)) + name + struct.pack(">Q", size_bytes)
        found = head.find(mark)
        if found < 0 or len(head) < found + len(mark) + _PLACES.size:
            return None
        version, page_bytes, bitmap, pages = _PLACES.unpack_from(head, found + len(mark))
        bitmap_bytes = size_bytes // PAGE_BYTES // 8
        if version != _PLACES_VERSION or page_bytes != PAGE_BYTES or pages % PAGE_BYTES:
            return None
        if not len(mark) < bitmap <= bitmap + bitmap_bytes <= pages <= _MOST_BEFORE_BYTES:
            return None
        return cls(pages, bitmap, bitmap_bytes)


@contextlib.asynccontextmanager
async def live_copy(qmp: Qmp, size_bytes: int, held: list[Extent]) -> AsyncIterator[LiveCopy]:
    """Start QEMU's copy. At the end of the block the copy has ended, in success or failure.

    Args:
        held: the memory that has content. Its copy is allocated here: memory that QEMU allocates would count
            as the machine's, whose limit may be too small.

    Raises:
        CannotFollow: QEMU refuses.
    """
    copy = os.memfd_create("bough-copy", os.MFD_CLOEXEC)
    try:
        try:
            try:
                await _begin(qmp, copy)
                places = await _find_places(copy, size_bytes)
                await asyncio.to_thread(_make_pages, copy, places, held)
                await qmp.execute("migrate-set-parameters", **_bandwidth(0))
            except (BoughError, OSError) as error:
                raise CannotFollow(str(error)) from error
            yield LiveCopy(qmp, copy, places)
        finally:
            await finish(end_live_copy(qmp))
    finally:
        os.close(copy)


async def _begin(qmp: Qmp, copy: int) -> None:
    descriptor = os.open(f"/proc/self/fd/{copy}", os.O_WRONLY | os.O_CLOEXEC)
    try:
        await qmp.add_fd(_FD_SET, descriptor)
    finally:
        os.close(descriptor)
    await _set_capabilities(qmp, True)
    # Downtime 0: QEMU must not complete by itself while any page is left. bough decides when.
    await qmp.execute("migrate-set-parameters", **_bandwidth(_SLOW_BYTES_PER_S), **_downtime(0))
    await qmp.execute("migrate", uri=f"file:/dev/fdset/{_FD_SET}")


async def _find_places(copy: int, size_bytes: int) -> Places:
    deadline = time.monotonic() + _PLACES_S
    while True:
        places = Places.read(copy, size_bytes)
        if places is not None:
            return places
        if time.monotonic() > deadline:
            raise CannotFollow("QEMU does not report where the pages are")
        await asyncio.sleep(_POLL_S)


def _make_pages(copy: int, places: Places, held: list[Extent]) -> None:
    for start, length in held:
        os.posix_fallocate(copy, places.pages + start, length)


def _bandwidth(bytes_per_s: int) -> dict[str, Any]:
    """Return the parameter; 0 means no limit."""
    return {"max-bandwidth": bytes_per_s}


def _downtime(milliseconds: int) -> dict[str, Any]:
    return {"downtime-limit": milliseconds}


async def end_live_copy(qmp: Qmp) -> None:
    """End a live copy, even a copy of an earlier service.

    The vCPUs keep their state. If the copy was complete, they stay paused until `cont`.
    """
    if qmp.version < OLDEST:
        return
    with contextlib.suppress(BoughError):
        if (await qmp.query("query-migrate")).get("status", "completed") not in _ENDED:
            await qmp.execute("migrate_cancel")
            deadline = time.monotonic() + _UNTIL_CANCELLED_S
            while (await qmp.query("query-migrate")).get("status") not in _ENDED:
                if time.monotonic() > deadline:
                    break
                await asyncio.sleep(_POLL_S)
        await _until_settled(qmp)
    for undo in (_set_capabilities(qmp, False), qmp.remove_fd(_FD_SET)):
        with contextlib.suppress(BoughError):
            await undo


async def _until_settled(qmp: Qmp) -> None:
    """Wait for the final state of the vCPUs: QEMU reports the end a moment earlier."""
    deadline = time.monotonic() + _UNTIL_CANCELLED_S
    while (await qmp.query("query-status")).get("status") == "finish-migrate":
        if time.monotonic() > deadline:
            raise MachineFailed("QEMU does not end its copy")
        await asyncio.sleep(_POLL_PAUSED_S)


async def _set_capabilities(qmp: Qmp, on: bool) -> None:
    wanted = [{"capability": name, "state": on} for name in _CAPABILITIES]
    await qmp.execute("migrate-set-capabilities", capabilities=wanted)


def _extents(bitmap: bytes) -> Iterator[Extent]:
    """Yield the extents of the pages with content."""
    bits = b"".join(map(_BITS.__getitem__, bitmap))
    for run in re.finditer(b"1+", bits):
        yield run.start() * PAGE_BYTES, (run.end() - run.start()) * PAGE_BYTES


def _pieces(extents: Iterator[Extent]) -> Iterator[Extent]:
    for start, length in extents:
        for offset in range(start, start + length, _MOVE_BYTES):
            yield offset, min(_MOVE_BYTES, start + length - offset)
