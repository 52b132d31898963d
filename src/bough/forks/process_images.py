"""The process images of snapshots (process_image/).

A fork continues from its snapshot's process image, if there is one, instead of starting a QEMU.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from bough.forks.host_memory import is_memory_short
from bough.forks.process_image.image import ProcessImage
from bough.tasks import Tasks

#: Each process image takes some 70 MiB of the host's memory, shared by its forks.
_MOST = 4
_KEPT_S = 1800.0
#: For a snapshot that has not been forked yet.
_KEPT_UNUSED_S = 300.0
_LOOK_EVERY_S = 10.0


@dataclass(eq=False)
class _Kept:
    """A process image with its use.

    Attributes:
        used: time of the last use, or of the creation (time.monotonic).
        uses: number of uses.
    """

    image: ProcessImage
    used: float
    uses: int = 0

    def is_old(self, now: float) -> bool:
        return now - self.used > (_KEPT_S if self.uses else _KEPT_UNUSED_S)


class ProcessImages:
    """The process images, kept while they are used and the host has memory for them.

    A fork that continues from a process image keeps the image's pages after the image is dropped.
    """

    def __init__(self) -> None:
        #: snapshot id -> process image
        self._kept: dict[str, _Kept] = {}
        self._refused: set[str] = set()
        self._looking: asyncio.Task[None] | None = None
        self._tasks = Tasks()

    def get(self, snapshot_id: str) -> ProcessImage | None:
        kept = self._kept.get(snapshot_id)
        if kept is None:
            return None
        if not kept.image.is_of_use:
            self.refuse(snapshot_id)
            return None
        kept.used = time.monotonic()
        kept.uses += 1
        return kept.image

    def has(self, snapshot_id: str) -> bool:
        return snapshot_id in self._kept

    def is_wanted(self, snapshot_id: str, *, forked: bool) -> bool:
        """Return whether a process image is missing and may be made.

        Args:
            forked: the snapshot was forked before: its image may replace any other.
        """
        has_room = forked or sum(kept.uses > 0 for kept in self._kept.values()) < _MOST
        is_new = snapshot_id not in self._kept and snapshot_id not in self._refused
        return has_room and is_new and not is_memory_short()

    def put(self, snapshot_id: str, image: ProcessImage) -> None:
        self._kept[snapshot_id] = _Kept(image, time.monotonic())
        while len(self._kept) > _MOST:
            others = [name for name in self._kept if name != snapshot_id]
            self._kept.pop(min(others, key=lambda name: (self._kept[name].uses > 0, self._kept[name].used)))
        if self._looking is None or self._looking.done():
            self._looking = self._tasks.begin(self._look(), "evict process images")

    def refuse(self, snapshot_id: str) -> None:
        """Make no more process images of the snapshot: another image would fail as well.

        Further forks start a QEMU.
        """
        self._kept.pop(snapshot_id, None)
        self._refused.add(snapshot_id)

    def drop(self, snapshot_id: str) -> None:
        """Drop the process image of a deleted snapshot."""
        self._kept.pop(snapshot_id, None)
        self._refused.discard(snapshot_id)

    async def close(self) -> None:
        await self._tasks.end()
        self._kept.clear()

    async def _look(self) -> None:
        while self._kept:
            await asyncio.sleep(_LOOK_EVERY_S)
            now, short = time.monotonic(), is_memory_short()
            for name in [name for name, kept in self._kept.items() if short or kept.is_old(now)]:
                self._kept.pop(name)
