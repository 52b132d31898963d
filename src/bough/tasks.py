"""Tasks that belong to somebody: begun for it, ended with it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

log = logging.getLogger("bough.tasks")

#: Longer than anything needs that tidies up behind itself.
_AGAIN_S = 3


class Tasks:
    """They go on when who asked for them goes away, and end when their owner says so."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def begin(self, work: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def end(self) -> None:
        await end_tasks(*self._tasks)


async def end_tasks(*tasks: asyncio.Task[Any]) -> None:
    """Cancel them, until all have ended; what they raise is dropped.

    One cancellation may be lost on its way: by `asyncio.wait_for` until Python 3.12, where what it waits
    for comes in the same moment; by a TaskGroup until 3.13, where one of its tasks fails then.
    """
    left = set(tasks)
    while left:
        for task in left:
            task.cancel()
        done, left = await asyncio.wait(left, timeout=_AGAIN_S)
        for task in done:
            if not task.cancelled():
                task.exception()  # has been asked for: asyncio does not log it as forgotten
        for task in left:
            log.warning("%s was cancelled and goes on: %s", task.get_name(), task.get_stack(limit=1))
