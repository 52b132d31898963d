"""A time-out that follows progress: a slow guest on a busy host is not a guest that hangs.

A `ProgressWatch` counts the time available to a guest since the last sign of life. A sign is any change that
an observer reports: bytes on the console, messages of the agent. The time between two looks counts as
follows:

    idle guest     all of the time: nothing held the guest back
    busy guest     the processor time of its process: the host used the rest

So the wait for a guest that spins on a quiet host ends after `quiet_s`. With a quarter of a processor the
wait ends after four times `quiet_s`. A bound of the user is kept to the second, with or without signs.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Any, Protocol, TypeVar

from bough.tasks import end_tasks

T = TypeVar("T")

#: The longest wait without a bound, for a guest that prints forever.
MOST_S = 3600.0
LOOK_EVERY_S = 1.0
#: Share of one processor between two looks; a guest above it is busy. An idle guest with a clock uses 0.025.
_BUSY_SHARE = 0.05

Sign = Callable[[], object]
#: Wait until one of the tasks has ended, or for that many seconds.
Pause = Callable[[Collection["asyncio.Task[Any]"], float], Awaitable[object]]


class Work(Protocol):
    """The host process of a guest, as the host's kernel describes it; `qemu.pid.Pid` is an implementation."""

    def used_s(self) -> float | None: ...
    def wants_processor(self) -> bool: ...


class Stalled(TimeoutError):
    """The wait ended without progress, or at its bound."""


async def _pause(tasks: Collection[asyncio.Task[Any]], seconds: float) -> object:
    return await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)


class ProgressWatch:
    """Decide whether to go on waiting.

    Args:
        quiet_s: time of the guest's own without a sign, after which the wait ends.
        idle_s: the same for a guest that does nothing meanwhile; `quiet_s` by default.
        most_s: the end in any case, in seconds from now.
        bound_s: a bound that a user gave; replaces the other three.
        signs: observers; the guest made progress when an observer's value has changed since the last look.
        work: the guest's process; None: all time counts.
    """

    def __init__(
        self,
        quiet_s: float,
        *,
        idle_s: float | None = None,
        most_s: float = MOST_S,
        bound_s: float | None = None,
        signs: Sequence[Sign] = (),
        work: Work | None = None,
        clock: Callable[[], float] = time.monotonic,
        pause: Pause = _pause,
        look_every_s: float = LOOK_EVERY_S,
    ) -> None:
        self._quiet_s = quiet_s
        self._idle_s = quiet_s if idle_s is None else idle_s
        self._most_s = most_s
        self._bound_s = bound_s
        self._signs = signs
        self._work = work
        self._clock = clock
        self._pause = pause
        self._look_every_s = look_every_s
        self._began = self._looked = clock()
        self._seen: list[object] | None = None
        self._used_s: float | None = None
        self._spent_s = self._idled_s = 0.0
        self.why = ""

    @property
    def waited_s(self) -> float:
        return self._clock() - self._began

    @property
    def left_s(self) -> float | None:
        """Return the seconds until the user's bound; None without a bound."""
        return None if self._bound_s is None else max(0.001, self._bound_s - self.waited_s)

    @property
    def is_bounded(self) -> bool:
        """Return whether a user gave the bound."""
        return self._bound_s is not None

    def look(self) -> bool:
        """Return whether to go on waiting; if not, `why` has the reason."""
        if self._bound_s is not None:
            self.why = f"within {self._bound_s:g} s"
            return self.waited_s < self._bound_s
        self._count()
        if self.waited_s >= self._most_s:
            self.why = f"within {self._most_s:g} s"
        elif self._spent_s >= self._quiet_s:
            self.why = f"and gave no sign of progress for {self._quiet_s:g} s"
        elif self._idled_s >= self._idle_s:
            self.why = f"and did nothing for {self._idle_s:g} s"
        else:
            return True
        return False

    def _count(self) -> None:
        """Add the time since the last look to the guest's time; a sign resets the guest's time."""
        now = self._clock()
        passed_s, self._looked = now - self._looked, now
        used_s, is_busy = self._worked(passed_s)
        seen = [sign() for sign in self._signs]
        if self._seen is not None and seen != self._seen:
            self._spent_s = self._idled_s = 0.0
        else:
            self._spent_s += min(passed_s, used_s) if is_busy else passed_s
            self._idled_s = 0.0 if is_busy else self._idled_s + passed_s
        self._seen = seen

    def _worked(self, passed_s: float) -> tuple[float, bool]:
        """Return the processor time since the last look, and whether the guest had work to do."""
        total_s = None if self._work is None else self._work.used_s()
        before_s, self._used_s = self._used_s, total_s
        if self._work is None or total_s is None or before_s is None:
            return 0.0, False
        used_s = total_s - before_s
        return used_s, used_s > _BUSY_SHARE * passed_s or self._work.wants_processor()

    def _next_look_s(self) -> float:
        if self._bound_s is None:
            return self._look_every_s
        return max(0.0, min(60.0, self._bound_s - self.waited_s))

    async def run(self, work: Awaitable[T]) -> T:
        """Return the result of `work`. If the wait ends before, cancel `work` and raise Stalled."""
        task = asyncio.ensure_future(work)
        try:
            while not task.done():
                await self._pause((task,), self._next_look_s())
                if not task.done() and not self.look():
                    raise Stalled(self.why)
            return task.result()
        finally:
            if not task.done():
                await end_tasks(task)

    async def until(self, *events: asyncio.Event) -> bool:
        """Wait for the events. Return whether one was set before the wait ended."""
        if any(event.is_set() for event in events):
            return True
        waits = [asyncio.create_task(event.wait()) for event in events]
        try:
            while not any(wait.done() for wait in waits):
                await self._pause(waits, self._next_look_s())
                if not any(wait.done() for wait in waits) and not self.look():
                    return False
            return True
        finally:
            for wait in waits:
                wait.cancel()


#: Make the watch of one wait from a number of seconds.
Patience = Callable[[float], ProgressWatch]


def by_the_clock(seconds: float) -> ProgressWatch:
    """Return a plain time-out, for a wait without a guest to observe."""
    return ProgressWatch(seconds, bound_s=seconds)
