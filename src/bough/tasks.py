"""Tasks with an owner, and helpers for cancellation."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any, TypeVar

T = TypeVar("T")

log = logging.getLogger("bough.tasks")

#: A longer clean-up must bear another cancellation (`finish`). The end of a QEMU takes 10 s at most.
_AGAIN_S = 12


class Stopped(Exception):
    """Raised in a thread of `run_stoppable` to stop the thread."""


async def finish(work: Awaitable[T]) -> T:
    """Await `work` to the end, even if the calling task is cancelled. CancelledError is raised afterwards.

    Use `finish` to remove files, and for a thread when cancellation removes the thread's files.
    """
    working, cancelled = asyncio.ensure_future(work), False
    while not working.done():
        try:
            await asyncio.shield(working)
        except asyncio.CancelledError:
            cancelled = True
        except Exception:
            break
    if cancelled and not working.cancelled():
        working.exception()  # retrieved, else asyncio logs a forgotten exception
        raise asyncio.CancelledError
    return working.result()


async def all_or_first_error(works: Iterable[Awaitable[T]]) -> list[T]:
    """Return all results, in order, or raise the first error. All works have ended by then."""
    done = await asyncio.gather(*works, return_exceptions=True)
    for result in done:
        if isinstance(result, BaseException):
            raise result
    return [result for result in done if not isinstance(result, BaseException)]


async def run_stoppable(function: Callable[[Callable[[], None]], T]) -> T:
    """Run `function(check)` in a thread.

    When the calling task is cancelled, the next `check()` raises Stopped. The thread has ended when
    CancelledError is raised.
    """
    stop = threading.Event()

    def check() -> None:
        if stop.is_set():
            raise Stopped

    working = asyncio.ensure_future(asyncio.to_thread(function, check))
    try:
        return await asyncio.shield(working)
    except asyncio.CancelledError:
        stop.set()
        with contextlib.suppress(Exception):  # the files are removed in any case
            await finish(working)
        raise


class Tasks:
    """Background tasks. A task outlives its request, and ends with the owner's `end`."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def begin(self, work: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def end(self) -> None:
        await end_tasks(*self._tasks)


async def wait_first(timeout_s: float | None, *events: asyncio.Event) -> bool:
    """Wait for the events. Return whether an event is set within the time."""
    waits = [asyncio.create_task(event.wait()) for event in events]
    try:
        done, _ = await asyncio.wait(waits, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        return bool(done)
    finally:
        for wait in waits:
            wait.cancel()


async def end_tasks(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks until all have ended; exceptions of the tasks are dropped.

    A cancellation may get lost: until Python 3.12 in `asyncio.wait_for`, if the awaited result arrives in the
    same moment; until 3.13 in a TaskGroup, if a task of the group fails then.
    """
    left = set(tasks)
    while left:
        for task in left:
            task.cancel()
        done, left = await asyncio.wait(left, timeout=_AGAIN_S)
        for task in done:
            if not task.cancelled():
                task.exception()  # retrieved, else asyncio logs a forgotten exception
        for task in left:
            log.warning("%s was cancelled and goes on: %s", task.get_name(), task.get_stack(limit=1))
