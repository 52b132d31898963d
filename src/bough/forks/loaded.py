"""Load the next fork of a snapshot before a user requests the fork.

Half of the time of a fork passes before the guest runs. bough makes the files, enters the jail, starts QEMU
and loads the state. Users often fork a snapshot repeatedly, e.g. to give each test a machine. So after a fork
bough prepares the next fork that far, and the fork waits for a while. The first fork is prepared while the
snapshot is still being written. A loaded fork uses little memory and no processor time. The guest has not run
yet, and gets a new identity as in any other fork. The guest of a standby machine (standby.py) has run.

A snapshot is also pre-warmed after its creation or a fork (prewarm.py). Then a fork that continues from the
process image replaces the loaded fork.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from functools import partial

from bough.errors import BoughError
from bough.forks.fork_kind import ForkKind
from bough.forks.level import Level
from bough.forks.pool import Item, Pool
from bough.forks.prewarm import Prewarming
from bough.machines.demand import DEMAND
from bough.machines.machine import Machine
from bough.machines.saved_state import SavedState
from bough.machines.state import State
from bough.tasks import Tasks

log = logging.getLogger("bough.forks")

#: Delay after a fork has answered: the user is at work with the fork.
_LOAD_AFTER_S = 1.0


@dataclass(eq=False)
class LoadedFork:
    """A waiting fork with a loaded state.

    Attributes:
        saved: the loaded state.
    """

    kind: ForkKind
    machine: Machine
    saved: SavedState


Load = Callable[[ForkKind], Awaitable[LoadedFork]]
Discard = Callable[[Machine], Awaitable[None]]


class LoadedForks:
    """Decides when a fork is loaded in advance. The forks wait in the pool.

    Args:
        load: makes a loaded fork.
        discard: deletes the machine of an unneeded fork.
    """

    def __init__(self, load: Load, discard: Discard, pool: Pool, prewarming: Prewarming) -> None:
        self._load = load
        self._discard = discard
        self._pool = pool
        self._prewarming = prewarming
        prewarming.made = self._load_anew
        #: Ids of deleted snapshots. An id is never reused.
        self._forgotten: set[str] = set()
        self._forking = 0
        self._last: ForkKind | None = None
        self._loading: asyncio.Task[None] | None = None
        self._tasks = Tasks()

    async def clear(self) -> None:
        """Discard all loaded forks, and the fork in preparation."""
        self._last = None
        await self._prewarming.end()
        await self._tasks.end()
        await self._pool.clear(Level.LOADED)

    def has(self, machine: Machine) -> bool:
        return any(item.content.machine is machine for item in self._pool.items(Level.LOADED))

    @contextlib.contextmanager
    def forking(self) -> Iterator[None]:
        """Load no fork until the block ends: a user waits for a fork in the block."""
        self._forking += 1
        try:
            with DEMAND.holding():
                yield
        finally:
            self._forking -= 1
            self._load_soon()

    def expect(self, kind: ForkKind) -> None:
        """Load the next fork soon: a fork of this kind was made."""
        self._last = kind
        self._prewarming.forked(kind)

    def foresee(self, kind: ForkKind) -> None:
        """Load a first fork of a snapshot while the snapshot is still being written."""
        self._tasks.begin(self._keep_loaded(kind), "load the first fork")

    def offer(self, kind: ForkKind) -> None:
        """Load a fork soon: the snapshot is complete now."""
        self._last = kind
        self._load_soon()
        self._prewarming.offer(kind)

    def take(self, kind: ForkKind) -> LoadedFork | None:
        """Return a loaded fork of this kind, if any. The caller owns the fork from now on."""
        item = self._find(kind)
        if item is None:
            return None
        self._pool.take(item)
        fork: LoadedFork = item.content
        return fork

    def forget(self, snapshot_id: str) -> None:
        """Discard all forks made of a snapshot, before the snapshot's deletion."""
        self._forgotten.add(snapshot_id)
        self._prewarming.forget(snapshot_id)
        self._pool.forget(snapshot_id)

    def _load_soon(self) -> None:
        if self._last is not None and (self._loading is None or self._loading.done()):
            self._loading = self._tasks.begin(self._load_next(), "load the next fork")

    async def _load_next(self) -> None:
        while self._last is not None:
            await asyncio.sleep(_LOAD_AFTER_S)
            if self._forking:
                return  # the last call that waits loads the next fork
            kind, self._last = self._last, None
            await self._keep_loaded(kind)

    async def _keep_loaded(self, kind: ForkKind) -> None:
        """Load a fork of this kind unless a fork waits already, and restart the waiting time."""
        if kind.manifest.part_of is not None:
            return  # a fork of a project needs networks of its own first
        item = self._find(kind)
        if item is not None:
            item.used = time.monotonic()
        elif kind.manifest.id not in self._forgotten and not self._pool.is_short():
            await self._try_to_load(kind)

    async def _load_anew(self, kind: ForkKind) -> None:
        """Replace the waiting fork, after its snapshot was pre-warmed."""
        if kind.manifest.id not in self._forgotten and not self._forking:
            await self._keep_loaded(kind)

    def _find(self, kind: ForkKind) -> Item | None:
        found = None
        for item in self._pool.items(Level.LOADED):
            if self._is_useless(item.content):
                self._pool.drop(item)
            elif item.content.kind.is_like(kind):
                found = found or item
        return found

    def _is_useless(self, fork: LoadedFork) -> bool:
        """Return whether the fork has died or is outdated.

        A fork is outdated if it was loaded before the snapshot had a process image: a new fork from the
        process image is ready earlier.
        """
        is_pre_warmed = self._pool.has(Level.PREWARMED, fork.kind.manifest.id)
        return (fork.saved.image is None and is_pre_warmed) or fork.machine.state is not State.PAUSED

    async def _try_to_load(self, kind: ForkKind) -> None:
        snapshot_id = kind.manifest.id
        try:
            fork = await self._load(kind)
        except (BoughError, OSError) as error:  # the next user who forks the snapshot sees the error
            log.info("a fork of %s could not be loaded in advance: %s", snapshot_id, error)
            return
        discard = partial(self._discard, fork.machine)
        if snapshot_id in self._forgotten:  # the snapshot was deleted meanwhile
            with contextlib.suppress(BoughError):
                await discard()
            return
        self._pool.put(Item(Level.LOADED, snapshot_id, fork, discard))
