"""The pool of things kept for later forks: process images, loaded forks, standby machines.

All items have one eviction, by the rules of level.py. The pool drops items over an age or a number, and all
items while the host is short of memory. No item is required: without an item a fork starts one level lower.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from bough.errors import BoughError
from bough.forks.host_memory import is_memory_short
from bough.forks.level import RULES, Level
from bough.tasks import Tasks

_LOOK_EVERY_S = 10.0


@dataclass(eq=False)
class Item:
    """A process image, loaded fork or machine in the pool.

    Attributes:
        snapshot_id: id of the source snapshot.
        content: a ProcessImage, a LoadedFork or a Machine.
        discard: deletes the content; None: nothing to do.
        request: the request for standby machines; None: not a standby machine.
        used: time of the last use, or of the creation (time.monotonic).
        uses: number of uses.
        group: items of one group are kept and evicted together; None: the item is alone.
    """

    level: Level
    snapshot_id: str
    content: Any
    discard: Callable[[], Awaitable[None]] | None = None
    request: str | None = None
    used: float = field(default_factory=time.monotonic)
    uses: int = 0
    group: str | None = None

    @property
    def owner(self) -> object:
        """Return a value that is equal for the items of one group."""
        return self.group or self

    def use(self) -> None:
        self.used = time.monotonic()
        self.uses += 1

    def expires(self) -> float | None:
        """Return the expiry of the item (time.monotonic); None: never."""
        rule = RULES[self.level]
        kept_s = rule.kept_s if self.uses or rule.kept_unused_s is None else rule.kept_unused_s
        return None if kept_s is None else self.used + kept_s


class Pool:
    """Attributes:
    is_short: whether the host is short of memory. Then nothing new is to be made.
    """

    def __init__(self, is_short: Callable[[], bool] = is_memory_short) -> None:
        self.is_short = is_short
        #: In the order of their arrival.
        self._items: list[Item] = []
        self._looking: asyncio.Task[None] | None = None
        self._discards: set[asyncio.Task[None]] = set()
        self._tasks = Tasks()

    def items(self, *levels: Level) -> list[Item]:
        return [item for item in self._items if item.level in levels]

    def find(self, level: Level, snapshot_id: str) -> Item | None:
        return next((item for item in self.items(level) if item.snapshot_id == snapshot_id), None)

    def has(self, level: Level, snapshot_id: str) -> bool:
        return self.find(level, snapshot_id) is not None

    def put(self, item: Item) -> None:
        """Keep an item. Discard items of the same level and request above the rule's number: never used items
        first, then the least recently used.
        """
        self._items.append(item)
        for surplus in self._surplus(item):
            self.drop(surplus)
        if self._looking is None or self._looking.done():
            self._looking = self._tasks.begin(self._look(), "evict what is kept for forks")

    def _surplus(self, new: Item) -> list[Item]:
        others = [
            one for one in self.items(new.level) if one.request == new.request and one.owner != new.owner
        ]
        others.sort(key=lambda one: (one.uses > 0, one.used))
        # A group is as new as its newest item.
        owners = list(reversed(dict.fromkeys(one.owner for one in reversed(others))))
        doomed = owners[: max(0, len(owners) + 1 - RULES[new.level].most)]
        return [one for one in others if one.owner in doomed]

    def take(self, item: Item) -> None:
        """Remove an item. The caller owns its content from now on."""
        self._items.remove(item)

    def drop(self, item: Item) -> None:
        """Remove an item, and discard its content in the background."""
        self._items.remove(item)
        if item.discard is not None:
            discard = self._tasks.begin(_discard(item.discard), "discard what was kept for forks")
            self._discards.add(discard)
            discard.add_done_callback(self._discards.discard)

    def forget(self, snapshot_id: str) -> None:
        """Drop the process image and the loaded forks of a snapshot before its deletion.

        Standby machines stay: each keeps the necessary files, and the request decides on removal.
        """
        for item in self.items(Level.PREWARMED, Level.LOADED):
            if item.snapshot_id == snapshot_id:
                self.drop(item)

    async def clear(self, *levels: Level) -> None:
        """Drop all items of these levels. Return when their contents are discarded."""
        for item in self.items(*levels):
            self.drop(item)
        if self._discards:
            await asyncio.wait(self._discards)

    async def close(self) -> None:
        await self.clear(*Level)
        await self._tasks.end()

    async def _look(self) -> None:
        while self._items:
            now, is_short = time.monotonic(), self.is_short()
            for item in self._items[:]:
                expires = item.expires()
                if is_short or (expires is not None and expires <= now):
                    self.drop(item)
            ends = [end for item in self._items if (end := item.expires()) is not None]
            await asyncio.sleep(max(0.0, min([now + _LOOK_EVERY_S, *ends]) - now))


async def _discard(discard: Callable[[], Awaitable[None]]) -> None:
    with contextlib.suppress(BoughError):
        await discard()
