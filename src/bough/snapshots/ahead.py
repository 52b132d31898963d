"""The next fork of a snapshot, begun before anybody asks for it.

Half of the time of a fork passes before its guest goes on: its files are made, its jail is entered, QEMU
starts, and takes up its state. Whoever forks a snapshot once, tests that each want a machine say, does so
again: after a fork the next is brought that far, and waits, for a while; and so is the first, while the
snapshot is still being written down. It holds little memory and no processor, and its guest has not gone on:
it is told who it is as any fork is. A spare (spares.py) is one that has.

It is rehearsed as well (machines/rehearsal.py), in the background, and so is a snapshot that was just taken:
the forks of it after that, the one that is begun among them, go on from a frozen process.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass

from bough.errors import BoughError
from bough.machines.machine import Machine
from bough.machines.record import State
from bough.machines.saved import SavedState
from bough.qemu.frozen.freeze import FrozenProcess
from bough.snapshots.frozen import FrozenProcesses
from bough.snapshots.spares import is_memory_short
from bough.snapshots.store import SnapshotManifest
from bough.snapshots.tree import Identity
from bough.spec import MachineSpec
from bough.tasks import Tasks

log = logging.getLogger("bough.ahead")

#: For so many snapshots at once: those that were taken or forked last.
_MOST = 2
_KEPT_S = 60.0
_LOOK_EVERY_S = 10.0
#: The one before it has just answered, and somebody wants something of it.
_BEGIN_AFTER_S = 1.0
#: So many forks of a snapshot one after the other, without a pause between them, do not wait for one to be
#: rehearsed: they would never come to an end.
_MOST_WITHOUT = 3


@dataclass(frozen=True)
class Kind:
    """What forks are alike.

    Attributes:
        spec: of a machine that `run` makes; None: the snapshot's.
    """

    manifest: SnapshotManifest
    identity: Identity
    spec: MachineSpec | None = None

    def is_like(self, other: Kind) -> bool:
        ours = (self.manifest.id, self.identity, self.spec)
        return ours == (other.manifest.id, other.identity, other.spec)


@dataclass(eq=False)
class Begun:
    """`saved` is what it has taken up, `until` (time.monotonic) is how long it waits."""

    kind: Kind
    machine: Machine
    saved: SavedState
    until: float = 0.0


Begin = Callable[[Kind], Awaitable[Begun]]
Discard = Callable[[Machine], Awaitable[None]]
#: The second says whether somebody waits for it.
Rehearse = Callable[[Kind, bool], Awaitable[FrozenProcess]]


class Ahead:
    """Made with three ways of the hypervisor: to begin a fork, to be rid of it, and to rehearse one."""

    def __init__(self, begin: Begin, discard: Discard, rehearse: Rehearse, frozen: FrozenProcesses) -> None:
        self._begin = begin
        self._discard = discard
        self._rehearse = rehearse
        self._frozen = frozen
        #: Snapshot -> how many forks of it were asked for.
        self._asked: Counter[str] = Counter()
        #: Those that were forked last at the end.
        self._begun: list[Begun] = []
        #: Ids, which are never given again.
        self._forgotten: set[str] = set()
        self._forking = 0
        self._last: Kind | None = None
        self._beginning: asyncio.Task[None] | None = None
        self._rehearsing: asyncio.Task[None] | None = None
        #: By the id of the snapshot, one after the other, of which what was asked for last comes first.
        self._to_rehearse: dict[str, Kind] = {}
        #: Those that go on, by the id of the snapshot.
        self._rehearsals: dict[str, asyncio.Task[None]] = {}
        self._tasks = Tasks()

    async def clear(self) -> None:
        """Be rid of all that were begun, and of the one that is being."""
        self._last = None
        self._to_rehearse.clear()
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
            yield
        finally:
            self._forking -= 1
            self._begin_soon()

    def expect(self, kind: Kind) -> None:
        """One was made; the next is to be begun."""
        self._last = kind
        self._asked[kind.manifest.id] += 1
        if self._asked[kind.manifest.id] >= _MOST_WITHOUT:
            self._rehearse_soon(kind)

    def foresee(self, kind: Kind) -> None:
        """None was made of that snapshot, which is still being written down, and will be perhaps."""
        self._tasks.begin(self._stand_ready(kind), "begin the first fork")

    def offer(self, kind: Kind) -> None:
        """That snapshot is there now."""
        self._last = kind
        self._begin_soon()

    def take(self, kind: Kind) -> Begun | None:
        """The caller's from now on."""
        one = self._find(kind)
        if one is not None:
            self._begun.remove(one)
        return one

    def forget(self, snapshot_id: str) -> None:
        """That snapshot is to be deleted."""
        self._forgotten.add(snapshot_id)
        self._asked.pop(snapshot_id, None)
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
            self._rehearse_soon(kind)

    async def _stand_ready(self, kind: Kind) -> None:
        """One is begun from now on, and waits."""
        one = self._find(kind)
        if one is None and kind.manifest.id not in self._forgotten and not is_memory_short():
            one = await self._try_to_begin(kind)
        if one is not None:
            one.until = time.monotonic() + _KEPT_S

    def _rehearse_soon(self, kind: Kind) -> None:
        if self._is_to_be_rehearsed(kind):
            self._to_rehearse[kind.manifest.id] = kind
            # Of a dozen that were taken one after the other the last are forked, if any.
            while len(self._to_rehearse) > _MOST:
                self._to_rehearse.pop(next(iter(self._to_rehearse)))
            if self._rehearsing is None or self._rehearsing.done():
                self._rehearsing = self._tasks.begin(self._rehearse_all(), "rehearse forks")

    def _is_to_be_rehearsed(self, kind: Kind) -> bool:
        name = kind.manifest.id
        return name not in self._forgotten and self._frozen.is_wanted(name, forked=self._asked[name] > 0)

    async def _rehearse_all(self) -> None:
        while self._to_rehearse:
            _, kind = self._to_rehearse.popitem()
            if self._is_to_be_rehearsed(kind):
                await asyncio.wait({self._begin_rehearsal(kind, in_hurry=False)})

    async def rehearse(self, kind: Kind) -> None:
        """Now, for many forks that are to go on from what comes of it."""
        if self._frozen.is_wanted(kind.manifest.id, forked=True):
            await asyncio.wait({self._begin_rehearsal(kind, in_hurry=True)})

    def _begin_rehearsal(self, kind: Kind, *, in_hurry: bool) -> asyncio.Task[None]:
        """Or the one that goes on."""
        name = kind.manifest.id
        if name not in self._rehearsals:
            work = self._try_to_rehearse(kind, in_hurry=in_hurry)
            self._rehearsals[name] = self._tasks.begin(work, "rehearse a fork")
            self._rehearsals[name].add_done_callback(lambda _: self._rehearsals.pop(name))
        return self._rehearsals[name]

    async def _try_to_rehearse(self, kind: Kind, *, in_hurry: bool) -> None:
        name = kind.manifest.id
        try:
            frozen = await self._rehearse(kind, in_hurry)
        except (BoughError, OSError) as error:
            log.info("no process of %s could be frozen, its forks start: %s", name, error)
            self._frozen.refuse(name)
            return
        if name in self._forgotten:
            return
        self._frozen.put(name, frozen)
        if not self._forking:  # in the place of one that was begun before
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
