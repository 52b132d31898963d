"""The next fork of a snapshot, begun before anybody asks for it.

Half of the time of a fork passes before its guest goes on: its files are made, its jail is entered, QEMU
starts, and takes up its state. Whoever forks a snapshot once, tests that each want a machine say, does so
again: after a fork the next is brought that far, and waits, for a while; and so is the first, while the
snapshot is still being written down. It holds little memory and no processor, and its guest has not gone on:
it is told who it is as any fork is. A spare (spares.py) is one that has.

A snapshot that was taken or forked is pre-warmed as well (prewarm.py). The fork that is begun then makes way
for one that continues from the process image.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass

from bough.errors import BoughError
from bough.machines.demand import DEMAND
from bough.machines.machine import Machine
from bough.machines.record import State
from bough.machines.saved import SavedState
from bough.snapshots.kind import Kind
from bough.snapshots.prewarm import Prewarming
from bough.snapshots.spares import is_memory_short
from bough.tasks import Tasks

log = logging.getLogger("bough.ahead")

#: For so many snapshots at once: those that were taken or forked last.
_MOST = 2
_KEPT_S = 60.0
_LOOK_EVERY_S = 10.0
#: The one before it has just answered, and somebody wants something of it.
_BEGIN_AFTER_S = 1.0


@dataclass(eq=False)
class Begun:
    """`saved` is what it has taken up, `until` (time.monotonic) is how long it waits."""

    kind: Kind
    machine: Machine
    saved: SavedState
    until: float = 0.0


Begin = Callable[[Kind], Awaitable[Begun]]
Discard = Callable[[Machine], Awaitable[None]]


class Ahead:
    """Made with two ways of the hypervisor: to begin a fork, and to be rid of it."""

    def __init__(self, begin: Begin, discard: Discard, prewarming: Prewarming) -> None:
        self._begin = begin
        self._discard = discard
        self._frozen = prewarming.frozen
        self._prewarming = prewarming
        prewarming.made = self._begin_anew
        #: Those that were forked last at the end.
        self._begun: list[Begun] = []
        #: Ids, which are never given again.
        self._forgotten: set[str] = set()
        self._forking = 0
        self._last: Kind | None = None
        self._beginning: asyncio.Task[None] | None = None
        self._tasks = Tasks()

    async def clear(self) -> None:
        """Be rid of all that were begun, and of the one that is being."""
        self._last = None
        await self._prewarming.end()
        await self._tasks.end()
        begun, self._begun = self._begun, []
        for one in begun:
            await self._drop(one)

    def has(self, machine: Machine) -> bool:
        return any(one.machine is machine for one in self._begun)

    @contextlib.contextmanager
    def forking(self) -> Iterator[None]:
        """Nothing is begun until the block, in which somebody waits for a fork, ends."""
        self._forking += 1
        try:
            with DEMAND.holding():
                yield
        finally:
            self._forking -= 1
            self._begin_soon()

    def expect(self, kind: Kind) -> None:
        """One was made; the next is to be begun."""
        self._last = kind
        if not self._frozen.has(kind.manifest.id):
            self._prewarming.forked(kind)

    def foresee(self, kind: Kind) -> None:
        """None was made of that snapshot, which is still being written down, and will be perhaps."""
        self._tasks.begin(self._stand_ready(kind), "begin the first fork")

    def offer(self, kind: Kind) -> None:
        """That snapshot is there now."""
        self._last = kind
        self._begin_soon()
        self._prewarming.offer(kind)

    def take(self, kind: Kind) -> Begun | None:
        """The caller's from now on."""
        one = self._find(kind)
        if one is not None:
            self._begun.remove(one)
        return one

    def forget(self, snapshot_id: str) -> None:
        """That snapshot is to be deleted."""
        self._forgotten.add(snapshot_id)
        self._prewarming.forget(snapshot_id)
        for one in [one for one in self._begun if one.kind.manifest.id == snapshot_id]:
            self._let_go(one)

    def _begin_soon(self) -> None:
        if self._last is not None and (self._beginning is None or self._beginning.done()):
            self._beginning = self._tasks.begin(self._begin_next(), "begin the next fork")

    async def _begin_next(self) -> None:
        while self._last is not None:
            await asyncio.sleep(_BEGIN_AFTER_S)
            if self._forking:
                return  # the last of them looks again
            kind, self._last = self._last, None
            await self._stand_ready(kind)

    async def _stand_ready(self, kind: Kind) -> None:
        """One is begun from now on, and waits."""
        one = self._find(kind)
        if one is None and kind.manifest.id not in self._forgotten and not is_memory_short():
            one = await self._try_to_begin(kind)
        if one is not None:
            one.until = time.monotonic() + _KEPT_S

    async def _begin_anew(self, kind: Kind) -> None:
        """The snapshot was pre-warmed: in the place of a fork that was begun before."""
        if kind.manifest.id not in self._forgotten and not self._forking:
            await self._stand_ready(kind)

    def _find(self, kind: Kind) -> Begun | None:
        for one in [one for one in self._begun if self._is_of_no_use(one)]:
            self._let_go(one)
        return next((one for one in self._begun if one.kind.is_like(kind)), None)

    def _is_of_no_use(self, one: Begun) -> bool:
        """It died, or was begun before there was a frozen process: the next that goes on from that is
        there sooner."""
        is_outdone = one.saved.frozen is None and self._frozen.has(one.kind.manifest.id)
        return is_outdone or one.machine.state is not State.PAUSED

    async def _try_to_begin(self, kind: Kind) -> Begun | None:
        try:
            one = await self._begin(kind)
        except (BoughError, OSError) as error:  # told to whoever forks it next
            log.info("no fork of %s could be begun: %s", kind.manifest.id, error)
            return None
        if kind.manifest.id in self._forgotten:  # deleted meanwhile
            await self._drop(one)
            return None
        self._begun.append(one)
        self._tasks.begin(self._expire(one), "wait with a fork that was begun")
        for old in self._begun[:-_MOST]:
            self._let_go(old)
        return one

    async def _expire(self, one: Begun) -> None:
        left = _KEPT_S
        while left > 0 and one in self._begun and not is_memory_short():
            await asyncio.sleep(min(left, _LOOK_EVERY_S))
            left = one.until - time.monotonic()
        if one in self._begun:
            self._let_go(one)

    def _let_go(self, one: Begun) -> None:
        self._begun.remove(one)
        self._tasks.begin(self._drop(one), "discard a fork that was begun")

    async def _drop(self, one: Begun) -> None:
        with contextlib.suppress(BoughError):
            await self._discard(one.machine)
