"""What is begun for somebody ends with it, also where a cancellation gets lost on its way."""

from __future__ import annotations

import asyncio
import contextlib
import logging

import pytest

from bough import tasks
from bough.tasks import Tasks, end_tasks


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
        await own.end()  # nothing is left, and nothing is waited for

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
