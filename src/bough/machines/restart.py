"""Start a failed machine again: `restart = "on-failure"`.

The pause before each start doubles from one second to five minutes. After a long run without a failure the
count starts again at zero. The record holds the count and the next time, so both outlive the service.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

from bough.errors import BoughError, Conflict, WrongState
from bough.machines.record import MachineRecord, Restarts
from bough.machines.state import State
from bough.progress import Report

FIRST_PAUSE_S = 1.0
MOST_PAUSE_S = 300.0
#: After a run of this length a failed machine counts as recovered.
CALM_S = 600.0


class Restartable(Protocol):
    """The parts of a machine that a Restarter uses."""

    @property
    def record(self) -> MachineRecord: ...

    async def start(self, report: Report = ..., *, by_policy: bool = ...) -> None: ...
    def change(self, *, event: bool = ..., **fields: Any) -> None: ...
    def tell(self, kind: str, detail: str = "") -> None: ...
    def own(self, work: Coroutine[Any, Any, None], what: str) -> asyncio.Task[None]: ...


def resolve_pause(before: Restarts, ran_s: float) -> tuple[int, float]:
    """Return the number of restarts in a row, with the next one, and the seconds until then."""
    count = 0 if ran_s >= CALM_S else before.count
    # Bound the exponent: a machine may fail for years.
    return count + 1, min(MOST_PAUSE_S, FIRST_PAUSE_S * 2 ** min(count, 16))


class Restarter:
    def __init__(self, machine: Restartable) -> None:
        self._machine = machine
        self._task: asyncio.Task[None] | None = None

    @property
    def is_pending(self) -> bool:
        return self._task is not None and not self._task.done()

    def after_failure(self) -> None:
        """Plan a restart of a machine that has just failed, by its policy."""
        record = self._machine.record
        if record.spec.restart != "on-failure":
            return
        count, pause_s = resolve_pause(record.restarts, _seconds_since(record.started))
        cause = record.failure.cause if record.failure else record.restarts.cause
        then = datetime.now(UTC) + timedelta(seconds=pause_s)
        restarts = Restarts(count=count, next=then.isoformat(timespec="milliseconds"), cause=cause)
        self._machine.change(restarts=restarts)
        self._machine.tell("restarting", f"in {pause_s:g} s, start {count} in a row: {cause}")
        self._schedule(pause_s)

    def adopt(self) -> None:
        """Continue with a restart that an earlier service planned."""
        record = self._machine.record
        if record.state is State.FAILED and record.restarts.next is not None:
            self._schedule(min(MOST_PAUSE_S, max(0.0, -_seconds_since(record.restarts.next))))

    def cancel(self) -> None:
        """Cancel the planned restart: another caller controls the machine."""
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
                return  # the machine was started or deleted meanwhile
            except Conflict:
                pause_s = FIRST_PAUSE_S  # another operation runs: try again afterwards
            except (BoughError, OSError):
                # The error is in the record; the pause grows.
                self._task = None
                self.after_failure()
                return


def _seconds_since(moment: str | None) -> float:
    if moment is None:
        return 0.0
    return (datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds()
