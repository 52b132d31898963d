"""The common moment of the captures of several machines.

    each machine    its memory is copied ─ begin ─ stop, save devices, switch disks ─ end ─ run again
    the moment      all are ready: frames are held             all are saved: frames are released

No machine runs again before all machines are saved. So in the snapshot no machine has received a frame before
the sender has sent the frame. Open connections between the machines go on in the forks. Held frames are not
lost: a stopped machine reads no frame.

A failure of one machine ends the moment for all machines: `begin` or `end` raises in each of the others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol, TypeVar

from bough.errors import BoughError, MachineFailed
from bough.tasks import finish

T = TypeVar("T")

#: Holds the frames between the machines in the block.
HoldFrames = Callable[[], AbstractAsyncContextManager[object]]


class Meeting(Protocol):
    """The moment of a capture, as seen by the capture of a single machine."""

    async def begin(self) -> None:
        """Return when the machine is to stop. Raises MachineFailed: another machine cannot be captured."""

    async def end(self) -> None:
        """Return when the machine may run again. Raises MachineFailed: as `begin`."""


class Alone:
    """The moment of a machine that is captured alone."""

    async def begin(self) -> None:
        pass

    async def end(self) -> None:
        pass


class _Gate:
    """A point that all parties pass together."""

    def __init__(self, parties: int) -> None:
        self._missing = parties
        self._passed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def wait(self) -> None:
        self._missing -= 1
        if self._missing == 0 and not self._passed.done():
            self._passed.set_result(None)
        await asyncio.shield(self._passed)

    def close(self, error: BoughError) -> None:
        if not self._passed.done():
            self._passed.set_exception(error)
            self._passed.exception()  # retrieved: perhaps no party waits


class Moment:
    """The common moment of several captures. Create in a running event loop.

    Args:
        parties: number of captures.
        hold: holds the frames between the machines.
    """

    def __init__(self, parties: int, hold: HoldFrames) -> None:
        self._hold = hold
        # The moment is a further party at each gate.
        self._gates = [_Gate(parties + 1) for _ in range(3)]
        self._ready, self._held, self._saved = self._gates

    async def begin(self) -> None:
        await self._ready.wait()
        await self._held.wait()

    async def end(self) -> None:
        await self._saved.wait()

    async def run(self) -> None:
        """Hold the frames from the time when all machines are ready until all machines are saved."""
        await self._ready.wait()
        async with self._hold():
            await self._held.wait()
            await self._saved.wait()

    async def joined(self, work: Coroutine[Any, Any, T]) -> T:
        """Do the work of a party. A failure ends the moment for all parties."""
        try:
            return await work
        except BaseException:
            self.call_off()
            raise

    def call_off(self) -> None:
        """End the moment for all captures that have not passed it."""
        for gate in self._gates:
            gate.close(MachineFailed("another machine could not be captured at the same moment", missed=True))


async def capture_together(
    captures: Sequence[Callable[[Meeting], Coroutine[Any, Any, T]]], hold: HoldFrames
) -> list[T]:
    """Run captures that share one moment. Return their results, in order.

    A failure or a cancellation of the call ends the moment for all machines. Then the call waits for the end
    of all captures: a capture after its moment is completed, and the caller undoes such a capture.

    Args:
        captures: each calls `begin` and `end` of its argument once, or fails.

    Raises the first error.
    """
    moment = Moment(len(captures), hold)
    parts = [asyncio.create_task(moment.joined(capture(moment))) for capture in captures]
    tasks: list[asyncio.Task[Any]] = [*parts, asyncio.create_task(moment.joined(moment.run()))]
    try:
        await asyncio.wait(tasks)
    finally:
        moment.call_off()
        # Retrieve all errors, else asyncio logs the errors beside the raised one.
        await finish(asyncio.gather(*tasks, return_exceptions=True))
    _raise_first(tasks)
    return [part.result() for part in parts]


def _raise_first(tasks: Sequence[asyncio.Task[Any]]) -> None:
    """Raise the error that ended the moment, if any."""
    errors = [error for task in tasks if not task.cancelled() and (error := task.exception()) is not None]
    for error in sorted(errors, key=_is_consequence):
        raise error


def _is_consequence(error: BaseException) -> bool:
    """Return whether the error of a capture follows from the error of another capture."""
    return isinstance(error, MachineFailed) and error.details.get("missed") is True
