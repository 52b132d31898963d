"""Decide when a snapshot is pre-warmed. A pre-warm never delays a waiting user.

A pre-warm (process_image/) takes two to four seconds of a processor. Then each fork of the snapshot is
ready and has run its first command some 0.3 s earlier. So

- a pre-warm runs in a pause: no user has wanted a fork or a command for a second. A new request ends the
  pre-warm, and the next attempt waits for a longer pause;
- a loop of forks has no pause. When the loop has made so many forks that a pre-warm would have paid off,
  the pre-warm runs beside the forks;
- a call for many forks waits for a pre-warm, but no longer than the start of these forks takes;
- a failed pre-warm is tried again later, each time after twice the wait. If a snapshot cannot have a process
  image on this host, bough gives up.

One pre-warm runs at a time, in the background at the lowest priority.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from bough.errors import BoughError, HostLacks
from bough.forks.fork_kind import ForkKind
from bough.forks.level import RULES, Level
from bough.forks.pool import Item, Pool
from bough.forks.process_image.image import ProcessImage
from bough.forks.urgency import Urgency
from bough.machines.demand import Demand
from bough.tasks import Tasks

log = logging.getLogger("bough.forks")

_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 30.0
#: This number of forks without a process image costs as much extra time as a pre-warm.
_FORKS_THAT_PAY = 12
#: Snapshots waiting for a pre-warm, the most recently taken or forked. The parts of a project's snapshot
#: count as one.
_MOST_WAITING = 2
_AGAIN_AFTER_S = 10.0
_LONGEST_AGAIN_S = 600.0
#: After this number of failures, bough tries again only when a user forks the snapshot.
_ATTEMPTS = 4
_LOOK_EVERY_S = 0.25
#: Estimated time to start one of many forks, until the first measurement: a quiet host with two processors,
#: emulated guests.
_START_S = 0.15
_KEPT_OF_START = 0.7
#: Longest wait of a call for many forks, however slow earlier forks were. A pre-warm takes some three
#: seconds; a much longer pre-warm does not settle.
_MOST_WAIT_S = 10.0

#: Makes a process image. The second argument says whether a user waits, from now on or later.
Make = Callable[[ForkKind, Urgency], Awaitable[ProcessImage]]


@dataclass(eq=False)
class _Wanted:
    """A snapshot that is to be pre-warmed.

    Attributes:
        forks: number of forks since the first request.
        failures: number of failed attempts.
        pause_s: the pre-warm starts when no user has requested anything for this time.
        not_before: time.monotonic() of the next attempt.
    """

    kind: ForkKind
    forks: int = 0
    failures: int = 0
    pause_s: float = _PAUSE_S
    not_before: float = 0.0

    @property
    def pays(self) -> bool:
        return self.forks >= _FORKS_THAT_PAY


@dataclass(eq=False)
class _Running:
    wanted: _Wanted
    urgency: Urgency
    task: asyncio.Task[None] | None = None

    @property
    def gives_way(self) -> bool:
        return not self.urgency.is_set and not self.wanted.pays

    @property
    def is_cancelled(self) -> bool:
        return self.task is not None and self.task.cancelling() > 0

    def cancel(self) -> None:
        """Cancel the pre-warm once: a second cancellation could end its clean-up."""
        if self.task is not None and not self.is_cancelled:
            self.task.cancel()


@dataclass
class Prewarming:
    """Decides when snapshots are pre-warmed.

    Attributes:
        make: makes a process image.
        made: called after each success.
    """

    make: Make
    pool: Pool
    demand: Demand
    is_on: bool = True
    made: Callable[[ForkKind], Awaitable[None]] | None = None
    #: Snapshots of which no process image is made any more: another image would fail as well.
    refused: set[str] = field(default_factory=set)
    _wanted: dict[str, _Wanted] = field(default_factory=dict)
    #: Names in _wanted; the last one is done first.
    _waiting: list[str] = field(default_factory=list)
    _running: _Running | None = None
    _loop: asyncio.Task[None] | None = None
    _tasks: Tasks = field(default_factory=Tasks)
    _start_s: float = _START_S

    def __post_init__(self) -> None:
        self.demand.listen(self._give_way)

    # -- requests -----------------------------------------------------------------------------

    def offer(self, kind: ForkKind) -> None:
        """Pre-warm a snapshot that may be forked."""
        name = kind.manifest.id
        if not self.is_on or not self._is_wanted(name, forked=self._forks(name) > 0):
            return
        self._wanted.setdefault(name, _Wanted(kind)).kind = kind
        if name in self._waiting:
            self._waiting.remove(name)
        self._waiting.append(name)
        self._waiting = self._latest()
        if self._loop is None or self._loop.done():
            self._loop = self._tasks.begin(self._work(), "pre-warm snapshots")

    def _latest(self) -> list[str]:
        """Return the waiting snapshots without the oldest above the limit."""
        wanted = {name: self._wanted.get(name) for name in self._waiting}
        owners = {name: (one and one.kind.manifest.part_of) or name for name, one in wanted.items()}
        latest = list(dict.fromkeys(reversed(owners.values())))[:_MOST_WAITING]
        return [name for name in self._waiting if owners[name] in latest]

    def forked(self, kind: ForkKind) -> None:
        """Count a fork of a snapshot, unless the snapshot has a process image."""
        if self.pool.has(Level.PREWARMED, kind.manifest.id):
            return
        self._wanted.setdefault(kind.manifest.id, _Wanted(kind)).forks += 1
        self.offer(kind)

    def started(self, snapshot_id: str, count: int, took_s: float) -> None:
        """Learn from a call that started `count` forks in `took_s` seconds."""
        if self.pool.has(Level.PREWARMED, snapshot_id):
            return  # forks from a process image are faster
        self._start_s = _KEPT_OF_START * self._start_s + (1 - _KEPT_OF_START) * took_s / count

    def forget(self, snapshot_id: str) -> None:
        """Give up the pre-warm of a snapshot before its deletion."""
        self._wanted.pop(snapshot_id, None)
        self.refused.discard(snapshot_id)
        if snapshot_id in self._waiting:
            self._waiting.remove(snapshot_id)

    async def end(self) -> None:
        self._waiting.clear()
        await self._tasks.end()

    def _is_wanted(self, snapshot_id: str, *, forked: bool) -> bool:
        """Return whether a process image is missing and may be made.

        Args:
            forked: the snapshot was forked before: its image may replace any other.
        """
        used = {item.owner for item in self.pool.items(Level.PREWARMED) if item.uses > 0}
        has_room = forked or len(used) < RULES[Level.PREWARMED].most
        is_new = snapshot_id not in self.refused and not self.pool.has(Level.PREWARMED, snapshot_id)
        return has_room and is_new and not self.pool.is_short()

    def _forks(self, name: str) -> int:
        return self._wanted[name].forks if name in self._wanted else 0

    # -- a user waits -------------------------------------------------------------------------

    async def wait_for_many(self, kind: ForkKind, count: int) -> None:
        """Return when `count` forks can continue from a process image, or could have been started by now."""
        name = kind.manifest.id
        wanted = self._wanted.setdefault(name, _Wanted(kind))
        if not self._can_be_urgent(wanted):
            return
        if self._running is None or self._running.wanted.kind.manifest.id != name:
            self._stop_running()
            self._begin(wanted, Urgency(True))
        running = self._running
        if running is None or running.task is None:
            return
        running.urgency.set()
        done, _ = await asyncio.wait({running.task}, timeout=min(count * self._start_s, _MOST_WAIT_S))
        if not done:
            self._stop_running()
            self._failed(wanted, TimeoutError(f"{count} forks are ready as soon without a process image"))
            self.offer(kind)

    def _can_be_urgent(self, wanted: _Wanted) -> bool:
        is_its_time = time.monotonic() >= wanted.not_before
        return self.is_on and is_its_time and self._is_wanted(wanted.kind.manifest.id, forked=True)

    def _stop_running(self) -> None:
        """Cancel the running pre-warm, and do not wait until it has ended."""
        if self._running is not None:
            self._running.cancel()

    # -- the pre-warm itself ------------------------------------------------------------------

    def _give_way(self) -> None:
        running = self._running
        if running is not None and running.gives_way and not running.is_cancelled:
            wanted = running.wanted
            wanted.pause_s = min(2 * wanted.pause_s, _LONGEST_PAUSE_S)
            running.cancel()

    async def _work(self) -> None:
        while self._waiting:
            wanted = self._choose()
            if wanted is None:
                await asyncio.sleep(_LOOK_EVERY_S)
                continue
            task = self._begin(wanted, Urgency(False))
            await asyncio.wait({task})

    def _choose(self) -> _Wanted | None:
        """Return a pre-warm that may run now, if any. Remove outdated requests."""
        if self._running is not None:
            return None
        now = time.monotonic()
        for name in reversed(self._waiting[:]):
            wanted = self._wanted.get(name)
            if wanted is None or not self._is_wanted(name, forked=wanted.forks > 0):
                self._waiting.remove(name)
            elif now >= wanted.not_before and (wanted.pays or self.demand.is_over_for(wanted.pause_s)):
                return wanted
        return None

    def _begin(self, wanted: _Wanted, urgency: Urgency) -> asyncio.Task[None]:
        running = self._running = _Running(wanted, urgency)
        running.task = self._tasks.begin(self._attempt(running), "pre-warm a snapshot")
        running.task.add_done_callback(lambda _: self._ended(running))
        return running.task

    def _ended(self, running: _Running) -> None:
        if self._running is running:
            self._running = None

    async def _attempt(self, running: _Running) -> None:
        wanted, name = running.wanted, running.wanted.kind.manifest.id
        try:
            image = await self.make(wanted.kind, running.urgency)
        except HostLacks as error:
            log.info("no process image of %s is possible, its forks start QEMU: %s", name, error)
            self._refuse(name)
            return
        except (BoughError, OSError, TimeoutError) as error:
            self._failed(wanted, error)
            return
        if name in self._wanted:
            image.on_distrust = lambda: self._refuse(name)
            self.pool.put(Item(Level.PREWARMED, name, image, group=wanted.kind.manifest.part_of))
            self._wanted.pop(name)
            if self.made is not None:
                await self.made(wanted.kind)

    def _refuse(self, name: str) -> None:
        """Make no more process images of a snapshot. Further forks start a QEMU."""
        self.refused.add(name)
        item = self.pool.find(Level.PREWARMED, name)
        if item is not None:
            self.pool.drop(item)

    def _failed(self, wanted: _Wanted, error: Exception) -> None:
        name = wanted.kind.manifest.id
        again_s = min(_AGAIN_AFTER_S * 2**wanted.failures, _LONGEST_AGAIN_S)
        log.info(
            "the pre-warm of %s failed, its forks start QEMU; next attempt in %.0f s: %s",
            name,
            again_s,
            error,
        )
        wanted.failures += 1
        wanted.not_before = time.monotonic() + again_s
        if wanted.failures >= _ATTEMPTS and name in self._waiting:
            self._waiting.remove(name)
