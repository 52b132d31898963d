"""Tasks end with their owner, even if a cancellation is lost."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from bough import tasks
from bough.tasks import Tasks, end_tasks, finish, run_stoppable


async def swallow(times: int) -> None:
    for _ in range(times):
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(3600)
    await asyncio.sleep(3600)


async def fail() -> None:
    raise ValueError("on purpose")


def test_all_have_ended(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(tasks, "_AGAIN_S", 0.01)

    async def main() -> None:
        own = Tasks()
        begun = [own.begin(swallow(times), f"swallows {times}") for times in range(3)]
        begun.append(own.begin(fail(), "fails"))
        await asyncio.sleep(0)
        await own.end()
        assert all(task.done() for task in begun)
        await own.end()  # no task is left to wait for

    with caplog.at_level(logging.WARNING):
        asyncio.run(main())
    told = sorted(record.getMessage().partition(" was")[0] for record in caplog.records)
    assert told == ["swallows 1", "swallows 2", "swallows 2"]


def test_who_waits_for_them_may_be_cancelled() -> None:
    async def main() -> None:
        stubborn = asyncio.create_task(swallow(1))
        await asyncio.sleep(0)
        ending = asyncio.create_task(end_tasks(stubborn))
        await asyncio.sleep(0.01)
        ending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await ending
        stubborn.cancel()
        await asyncio.wait({stubborn}, timeout=1)

    asyncio.run(main())


async def test_finish_ends_what_a_cancelled_task_began() -> None:
    ended = []

    async def work() -> None:
        await asyncio.sleep(0.05)
        ended.append(True)

    task = asyncio.create_task(finish(work()))
    for _ in range(3):
        await asyncio.sleep(0)
        task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == [True]


async def test_finish_returns_and_raises_as_its_work_does() -> None:
    assert await finish(asyncio.sleep(0, "result")) == "result"

    async def fail() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await finish(fail())
    task = asyncio.create_task(finish(fail()))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises((asyncio.CancelledError, ValueError)):
        await task


async def test_a_thread_has_ended_when_its_task_is_cancelled() -> None:
    begun, ended = threading.Event(), []

    def work(check: Callable[[], None]) -> None:
        begun.set()
        try:
            while True:
                check()
        finally:
            ended.append(True)

    task = asyncio.create_task(run_stoppable(work))
    await asyncio.to_thread(begun.wait)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == [True]
    assert await run_stoppable(lambda check: 7) == 7


async def test_a_thread_that_could_not_begin_yet_never_does() -> None:
    """All threads are busy: work that is cancelled before it gets a thread never starts."""
    release, made = threading.Event(), []

    def work(check: Callable[[], None]) -> None:
        check()
        made.append(True)

    with ThreadPoolExecutor(1) as pool:
        asyncio.get_running_loop().set_default_executor(pool)
        busy = asyncio.create_task(asyncio.to_thread(release.wait))
        task = asyncio.create_task(run_stoppable(work))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.sleep(0)
        release.set()
        await busy
        with pytest.raises(asyncio.CancelledError):
            await task
    assert made == []
