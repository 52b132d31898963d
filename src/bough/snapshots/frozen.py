"""Which snapshots have a frozen process (qemu/frozen/), from which their forks go on instead of starting."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from dataclasses import dataclass

from bough.qemu.frozen.freeze import FrozenProcess
from bough.snapshots.spares import is_memory_short
from bough.tasks import Tasks

#: Each takes some 70 MiB of the host's memory, which its forks share.
_MOST = 4
_KEPT_S = 1800.0
_LOOK_EVERY_S = 10.0


@dataclass(eq=False)
class _Kept:
    process: FrozenProcess
    used: float


class FrozenProcesses:
    """Kept while they are used, and while there is memory for them. Forks that went on from one keep what
    they have of it."""

    def __init__(self) -> None:
        #: By the id of the snapshot; those used last at the end.
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._refused: set[str] = set()
        self._looking: asyncio.Task[None] | None = None
        self._tasks = Tasks()

    def get(self, snapshot_id: str) -> FrozenProcess | None:
        kept = self._kept.get(snapshot_id)
        if kept is None:
            return None
        if not kept.process.is_of_use:
            self.refuse(snapshot_id)
            return None
        kept.used = time.monotonic()
        self._kept.move_to_end(snapshot_id)
        return kept.process

    def is_wanted(self, snapshot_id: str) -> bool:
        """There is none, and nothing is known that speaks against making one."""
        return snapshot_id not in self._kept and snapshot_id not in self._refused and not is_memory_short()

    def put(self, snapshot_id: str, process: FrozenProcess) -> None:
        self._kept[snapshot_id] = _Kept(process, time.monotonic())
        while len(self._kept) > _MOST:
            self._kept.popitem(last=False)
        if self._looking is None or self._looking.done():
            self._looking = self._tasks.begin(self._look(), "look after frozen processes")

    def refuse(self, snapshot_id: str) -> None:
        """Its forks are to be started as they were: another one would be as little use."""
        self._kept.pop(snapshot_id, None)
        self._refused.add(snapshot_id)

    def drop(self, snapshot_id: str) -> None:
        """That snapshot is deleted."""
        self._kept.pop(snapshot_id, None)
        self._refused.discard(snapshot_id)

    async def close(self) -> None:
        await self._tasks.end()
        self._kept.clear()

    async def _look(self) -> None:
        while self._kept:
            await asyncio.sleep(_LOOK_EVERY_S)
            oldest = time.monotonic() - _KEPT_S
            short = is_memory_short()
            for name in [name for name, kept in self._kept.items() if short or kept.used < oldest]:
                self._kept.pop(name)
