"""Copy the memory of a guest into a template, with a short pause.

Most of the memory is copied while the guest runs, so the pause is short. Two methods exist:

    Outside     from outside QEMU: a first copy allocates the pages. In the pause, all written memory is
                copied a second time. The pause grows with the amount of written memory.
    Followed    by QEMU, which tracks the guest's writes and copies only changed pages again. It needs QEMU
                9.0, and pays off only for much written memory (see machines/live_copy.py)
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

#: QEMU's method copies all memory. From the following amount of written memory on, the pause is still
#: shorter.
_FOLLOW_FROM_BYTES = 64 * MIB

_log = logging.getLogger(__name__)


class Outside:
    """The copy from outside QEMU. All written memory has been copied once before."""

    def __init__(self, ram: GuestRam, file: MemoryFile) -> None:
        self._ram = ram
        self._file = file

    async def beside(self) -> None:
        """Do the part that runs concurrently with other work. The vCPUs are stopped."""
        await asyncio.to_thread(self._copy_again)

    async def last(self) -> None:
        """Do the rest, after the other work. The vCPUs are stopped."""

    async def seal(self) -> Template:
        """Return the copied memory. The vCPUs may run again."""
        return await asyncio.to_thread(self._file.seal)

    def _copy_again(self) -> None:
        self._file.read_process(self._ram.pid, self._ram.address, self._ram.private_extents(), hurry=True)


class Followed:
    """The copy by QEMU. Same methods as `Outside`."""

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
    """Copy most of the memory by the method that fits the machine, then run the block.

    Args:
        runs: the vCPUs run; otherwise there are no writes to track.
        prepare: called right before the pause of a running guest, to prepare the guest; must not fail.

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
            _log.warning("QEMU cannot track the guest's writes, so the pause is longer: %s", error)
    with await asyncio.to_thread(_copy_once, ram) as file:
        if runs:
            await prepare()
        yield Outside(ram, file)


def _worth_following(ram: GuestRam) -> list[Extent]:
    """Return all content of the guest's memory, or nothing if the guest has written little."""
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
    """Copy all written memory once. The copy allocates the pages, so the second copy is fast."""
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
