"""A machine that failed and is to be started again: `restart = "on-failure"`.

The pause before each start doubles from a second to five minutes; after it has run for a while the count
begins anew. The count and the next time are in the record, so that they outlive the service.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

from bough.errors import BoughError, Conflict, WrongState
from bough.machines.record import MachineRecord, Restarts, State
from bough.progress import Report

FIRST_PAUSE_S = 1.0
MOST_PAUSE_S = 300.0
#: A machine that ran this long before it failed had recovered.
CALM_S = 600.0


class Restartable(Protocol):
    """What a Restarter needs of a machine."""

    record: MachineRecord

    async def start(self, report: Report = ..., *, by_policy: bool = ...) -> None: ...
    def keep_restarts(self, restarts: Restarts, *, detail: str | None = None) -> None: ...
    def own(self, work: Coroutine[Any, Any, None], what: str) -> asyncio.Task[None]: ...


def resolve_pause(before: Restarts, ran_s: float) -> tuple[int, float]:
    """How often in a row it will have been restarted, and seconds until then."""
    count = 0 if ran_s >= CALM_S else before.count
    # No power of thousands: a machine may fail for years.
    return count + 1, min(MOST_PAUSE_S, FIRST_PAUSE_S * 2 ** min(count, 16))


class Restarter:
    def __init__(self, machine: Restartable) -> None:
        self._machine = machine
        self._task: asyncio.Task[None] | None = None

    @property
    def is_pending(self) -> bool:
        return self._task is not None and not self._task.done()

    def after_failure(self) -> None:
        """It is `failed` now; start it again in a while, if that is its policy."""
        record = self._machine.record
        if record.spec.restart != "on-failure":
            return
        count, pause_s = resolve_pause(record.restarts, _seconds_since(record.started))
        cause = record.failure.cause if record.failure else record.restarts.cause
        then = datetime.now(UTC) + timedelta(seconds=pause_s)
        restarts = Restarts(count=count, next=then.isoformat(timespec="milliseconds"), cause=cause)
        self._machine.keep_restarts(restarts, detail=f"in {pause_s:g} s, start {count} in a row: {cause}")
        self._schedule(pause_s)

    def take_up(self) -> None:
        """A restart that an earlier service had planned."""
        record = self._machine.record
        if record.state is State.FAILED and record.restarts.next is not None:
            self._schedule(min(MOST_PAUSE_S, max(0.0, -_seconds_since(record.restarts.next))))

    def cancel(self) -> None:
        """Somebody else decides what becomes of it."""
        task, self._task = self._task, None
        if task is not None and task is not asyncio.current_task():
            task.cancel()

    def _schedule(self, pause_s: float) -> None:
        self.cancel()
        self._task = self._machine.own(self._restart(pause_s), "restart")

    async def _restart(self, pause_s: float) -> None:
        while True:
            await asyncio.sleep(pause_s)
            try:
                await self._machine.start(by_policy=True)
                return
            except WrongState:
                return  # it was started, deleted or taken up by somebody meanwhile
            except Conflict:
                pause_s = FIRST_PAUSE_S  # something else is done with it: afterwards
            except (BoughError, OSError):
                # What went wrong is in the record; the pause grows.
                self._task = None
                self.after_failure()
                return


def _seconds_since(moment: str | None) -> float:
    if moment is None:
        return 0.0
    return (datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds()
