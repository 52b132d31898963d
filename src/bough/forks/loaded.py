"""Begin the next fork of a snapshot before a user requests the fork.

Half of the time of a fork passes before the guest runs. bough makes the files, enters the jail, starts QEMU
and loads the state. Users often fork a snapshot repeatedly, e.g. to give each test a machine. So after a fork
bough prepares the next fork that far, and the fork waits for a while. The first fork is prepared while the
snapshot is still being written. A prepared fork uses little memory and no processor time. The guest has not
run yet, and gets a new identity as in any other fork. The guest of a standby machine (standby.py) has run.

A snapshot is also pre-warmed after its creation or a fork (prewarm.py). Then a fork that continues from the
process image replaces the prepared fork.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass

from bough.errors import BoughError
from bough.forks.fork_kind import ForkKind
from bough.forks.host_memory import is_memory_short
from bough.forks.prewarm import Prewarming
from bough.machines.demand import DEMAND
from bough.machines.machine import Machine
from bough.machines.saved_state import SavedState
from bough.machines.state import State
from bough.tasks import Tasks

log = logging.getLogger("bough.forks")

#: Number of snapshots with a prepared fork: those taken or forked last.
_MOST = 2
_KEPT_S = 60.0
_LOOK_EVERY_S = 10.0
#: Delay after a fork has answered: the user is at work with the fork.
_BEGIN_AFTER_S = 1.0


@dataclass(eq=False)
class LoadedFork:
    """A fork that has loaded its state and waits.

    Attributes:
        saved: the loaded state.
        until: end of the waiting time (time.monotonic).
    """

    kind: ForkKind
    machine: Machine
    saved: SavedState
    until: float = 0.0


Begin = Callable[[ForkKind], Awaitable[LoadedFork]]
Discard = Callable[[Machine], Awaitable[None]]


class LoadedForks:
    """The forks that were loaded in advance.

    Args:
        begin: begins a fork.
        discard: deletes the machine of an unneeded fork.
    """

    def __init__(self, begin: Begin, discard: Discard, prewarming: Prewarming) -> None:
        self._begin = begin
        self._discard = discard
        self._images = prewarming.images
        self._prewarming = prewarming
        prewarming.made = self._begin_anew
        #: In order of use: the snapshot forked last is at the end.
        self._loaded: list[LoadedFork] = []
        #: Ids of deleted snapshots. An id is never reused.
        self._forgotten: set[str] = set()
        self._forking = 0
        self._last: ForkKind | None = None
        self._beginning: asyncio.Task[None] | None = None
        self._tasks = Tasks()

    async def close(self) -> None:
        """Discard all forks and process images."""
        await self.clear()
        await self._images.close()

    async def clear(self) -> None:
        """Discard all forks, and the fork in preparation."""
        self._last = None
        await self._prewarming.end()
        await self._tasks.end()
        begun, self._loaded = self._loaded, []
        for one in begun:
            await self._drop(one)

    def has(self, machine: Machine) -> bool:
        return any(one.machine is machine for one in self._loaded)

    @contextlib.contextmanager
    def forking(self) -> Iterator[None]:
        """Begin no fork until the block ends: a user waits for a fork in the block."""
        self._forking += 1
        try:
            with DEMAND.holding():
                yield
        finally:
            self._forking -= 1
            self._begin_soon()

    def expect(self, kind: ForkKind) -> None:
        """Begin the next fork soon: a fork of this kind was made."""
        self._last = kind
        if not self._images.has(kind.manifest.id):
            self._prewarming.forked(kind)

    def foresee(self, kind: ForkKind) -> None:
        """Begin a first fork of a snapshot while the snapshot is still being written."""
        self._tasks.begin(self._stand_ready(kind), "begin the first fork")

    def offer(self, kind: ForkKind) -> None:
        """Begin a fork soon: the snapshot is complete now."""
        self._last = kind
        self._begin_soon()
        self._prewarming.offer(kind)

    def take(self, kind: ForkKind) -> LoadedFork | None:
        """Return a prepared fork of this kind, if any. The caller owns the fork from now on."""
        one = self._find(kind)
        if one is not None:
            self._loaded.remove(one)
        return one

    def forget(self, snapshot_id: str) -> None:
        """Discard the forks of a snapshot before its deletion."""
        self._forgotten.add(snapshot_id)
        self._prewarming.forget(snapshot_id)
        self._images.drop(snapshot_id)
        for one in [one for one in self._loaded if one.kind.manifest.id == snapshot_id]:
            self._let_go(one)

    def _begin_soon(self) -> None:
        if self._last is not None and (self._beginning is None or self._beginning.done()):
            self._beginning = self._tasks.begin(self._begin_next(), "begin the next fork")

    async def _begin_next(self) -> None:
        while self._last is not None:
            await asyncio.sleep(_BEGIN_AFTER_S)
            if self._forking:
                return  # the last call that waits begins the next fork
            kind, self._last = self._last, None
            await self._stand_ready(kind)

    async def _stand_ready(self, kind: ForkKind) -> None:
        """Begin a fork of this kind unless a fork waits already, and restart the waiting time."""
        one = self._find(kind)
        if one is None and kind.manifest.id not in self._forgotten and not is_memory_short():
            one = await self._try_to_begin(kind)
        if one is not None:
            one.until = time.monotonic() + _KEPT_S

    async def _begin_anew(self, kind: ForkKind) -> None:
        """Replace the waiting fork, after its snapshot was pre-warmed."""
        if kind.manifest.id not in self._forgotten and not self._forking:
            await self._stand_ready(kind)

    def _find(self, kind: ForkKind) -> LoadedFork | None:
        for one in [one for one in self._loaded if self._is_of_no_use(one)]:
            self._let_go(one)
        return next((one for one in self._loaded if one.kind.is_like(kind)), None)

    def _is_of_no_use(self, one: LoadedFork) -> bool:
        """Return whether the fork has died or is outdated.

        A fork is outdated if it was begun before the snapshot had a process image: a new fork from the
        process image is ready earlier.
        """
        is_outdone = one.saved.image is None and self._images.has(one.kind.manifest.id)
        return is_outdone or one.machine.state is not State.PAUSED

    async def _try_to_begin(self, kind: ForkKind) -> LoadedFork | None:
        try:
            one = await self._begin(kind)
        except (BoughError, OSError) as error:  # the next user who forks the snapshot sees the error
            log.info("a fork of %s could not be loaded in advance: %s", kind.manifest.id, error)
            return None
        if kind.manifest.id in self._forgotten:  # the snapshot was deleted meanwhile
            await self._drop(one)
            return None
        self._loaded.append(one)
        self._tasks.begin(self._expire(one), "wait with a loaded fork")
        for old in self._loaded[:-_MOST]:
            self._let_go(old)
        return one

    async def _expire(self, one: LoadedFork) -> None:
        left = _KEPT_S
        while left > 0 and one in self._loaded and not is_memory_short():
            await asyncio.sleep(min(left, _LOOK_EVERY_S))
            left = one.until - time.monotonic()
        if one in self._loaded:
            self._let_go(one)

    def _let_go(self, one: LoadedFork) -> None:
        self._loaded.remove(one)
        self._tasks.begin(self._drop(one), "discard a loaded fork")

    async def _drop(self, one: LoadedFork) -> None:
        with contextlib.suppress(BoughError):
            await self._discard(one.machine)
