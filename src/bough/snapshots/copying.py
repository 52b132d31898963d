"""The memory of a guest that is to stand still for a moment only, in a template.

Most of it is copied while the guest runs, so that little is left to do while it does not. There are two ways:

    Outside     from outside QEMU: all that was written is copied once more while the vCPUs stand still, to
                pages that are there already. That takes the longer the more it is.
    Followed    by QEMU, which follows what the guest writes, and copies only that again: where it can (9.0
                and later), and where it is so much that it pays (see machines/live_copy.py)
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

from bough.machines.live_copy import OLDEST, CannotFollow, LiveCopy, Prepare, live_copy
from bough.qemu.qmp import Qmp
from bough.qemu.ram import Extent, GuestRam, MemoryFile, Template, size_of, subtract, union
from bough.units import MIB

#: Written memory from which on the way of QEMU, which copies all that there is, takes the guest less time.
_FOLLOW_FROM_BYTES = 64 * MIB

_log = logging.getLogger(__name__)


class Outside:
    """Not before all that was written has been copied once."""

    def __init__(self, ram: GuestRam, file: MemoryFile) -> None:
        self._ram = ram
        self._file = file

    async def beside(self) -> None:
        """What there is to do beside other things, the vCPUs stand still."""
        await asyncio.to_thread(self._copy_again)

    async def last(self) -> None:
        """And after those."""

    async def seal(self) -> Template:
        """The vCPUs may run again."""
        return await asyncio.to_thread(self._file.seal)

    def _copy_again(self) -> None:
        self._file.read_process(self._ram.pid, self._ram.address, self._ram.private_extents(), hurry=True)


class Followed:
    """As `Outside`."""

    def __init__(self, live: LiveCopy, size_bytes: int) -> None:
        self._live = live
        self._size_bytes = size_bytes

    async def beside(self) -> None:
        await self._live.catch_up()

    async def last(self) -> None:
        await self._live.finish()

    async def seal(self) -> Template:
        return await asyncio.to_thread(self._move)

    def _move(self) -> Template:
        with MemoryFile(self._size_bytes) as file:
            self._live.move_to(file)
            return file.seal()


@contextlib.asynccontextmanager
async def copying(
    qmp: Qmp, ram: GuestRam, *, runs: bool, prepare: Prepare
) -> AsyncIterator[Outside | Followed]:
    """Most of the memory is copied, by the way that suits it.

    Args:
        runs: whether the vCPUs do; else nothing is to follow.
        prepare: what a guest that runs is to do right before it stands still; it must not fail.

    Raises:
        MachineFailed, HostLacks: see GuestRam.
    """
    held = await asyncio.to_thread(_worth_following, ram) if runs and qmp.version >= OLDEST else []
    if held:
        try:
            async with live_copy(qmp, ram.size_bytes, held) as live:
                await live.follow(prepare)
                yield Followed(live, ram.size_bytes)
                return
        except CannotFollow as error:
            _log.warning(
                "QEMU does not follow what its guest writes, so it stands still for longer: %s", error
            )
    with await asyncio.to_thread(_copy_once, ram) as file:
        if runs:
            await prepare()
        yield Outside(ram, file)


def _worth_following(ram: GuestRam) -> list[Extent]:
    """All that its memory holds, where the guest has written much of it."""
    written = ram.private_extents()
    if size_of(written) < _FOLLOW_FROM_BYTES:
        return []
    origin = ram.open_template()
    if origin is None:
        return written
    try:
        return union(written, list(subtract(origin.extents(), written)))
    finally:
        origin.close()


def _copy_once(ram: GuestRam) -> MemoryFile:
    """The pages are there afterwards, so that copying them again costs little."""
    file = MemoryFile(ram.size_bytes)
    try:
        extents = ram.private_extents()
        origin = ram.open_template()
        if origin is not None:
            file.copy_from(origin, extents)
            origin.close()
        file.read_process(ram.pid, ram.address, extents)
    except BaseException:
        file.__exit__()
        raise
    return file
