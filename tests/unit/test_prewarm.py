"""The moments of a pre-warm: in breaks, beside loops that are long enough, and never at a user's cost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from bough.errors import AgentTimeout, HostLacks
from bough.forks import prewarm
from bough.forks.level import Level
from bough.forks.pool import Pool
from bough.forks.prewarm import Prewarming
from bough.forks.urgency import Urgency
from bough.machines.demand import Demand


def kind(name: str = "one", part_of: str | None = None) -> Any:
    return SimpleNamespace(manifest=SimpleNamespace(id=name, part_of=part_of))


class Maker:
    """A maker of process images: each attempt takes `takes_s`, or ends with the next of `errors`."""

    def __init__(self) -> None:
        self.takes_s = 0.0
        self.errors: list[Exception] = []
        self.begun: list[str] = []
        self.cut_off = 0
        self.urgencies: list[Urgency] = []

    async def __call__(self, kind: Any, urgency: Urgency) -> Any:
        self.begun.append(kind.manifest.id)
        self.urgencies.append(urgency)
        try:
            await asyncio.sleep(self.takes_s)
        except asyncio.CancelledError:
            self.cut_off += 1
            raise
        if self.errors:
            raise self.errors.pop(0)
        return SimpleNamespace(is_of_use=True)


@pytest.fixture
def make() -> Maker:
    return Maker()


@pytest.fixture
async def warming(monkeypatch: pytest.MonkeyPatch, make: Maker) -> AsyncIterator[Prewarming]:
    for name, value in {"_PAUSE_S": 0.02, "_LOOK_EVERY_S": 0.005, "_AGAIN_AFTER_S": 0.05}.items():
        monkeypatch.setattr(prewarm, name, value)
    pool = Pool(is_short=lambda: False)
    warming = Prewarming(make, pool, Demand())
    yield warming
    await warming.end()
    await pool.close()


def has(warming: Prewarming, name: str) -> bool:
    return warming.pool.has(Level.PREWARMED, name)


async def until(condition: Any) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.002)


async def test_a_snapshot_is_pre_warmed_in_a_pause(warming: Prewarming, make: Maker) -> None:
    told = []

    async def made(kind: Any) -> None:
        told.append(kind.manifest.id)

    warming.made = made
    with warming.demand.holding():
        warming.offer(kind())
        await asyncio.sleep(0.1)
        assert make.begun == []
    await until(lambda: told == ["one"])
    assert has(warming, "one")
    assert not make.urgencies[0].is_set


async def test_it_gives_way_to_a_user_and_waits_for_a_longer_pause(warming: Prewarming, make: Maker) -> None:
    make.takes_s = 0.05
    warming.offer(kind())
    await until(lambda: len(make.begun) == 1)
    warming.demand.notice()
    began = time.monotonic()
    await until(lambda: make.cut_off == 1)
    await until(lambda: len(make.begun) == 2)
    assert time.monotonic() - began >= 2 * 0.02
    await until(lambda: has(warming, "one"))


async def test_a_loop_of_ten_forks_starts_none(warming: Prewarming, make: Maker) -> None:
    for _ in range(10):
        with warming.demand.holding():
            warming.forked(kind())
        await asyncio.sleep(0.005)
        warming.demand.notice()
    assert make.begun == []


async def test_a_longer_loop_is_worth_one(warming: Prewarming, make: Maker) -> None:
    make.takes_s = 0.02
    for _ in range(40):
        with warming.demand.holding():
            warming.forked(kind())
        await asyncio.sleep(0.005)
    assert has(warming, "one")
    assert make.begun == ["one"]
    assert make.cut_off == 0


async def test_one_that_cannot_settle_is_tried_again_later(warming: Prewarming, make: Maker) -> None:
    make.errors = [AgentTimeout("it did not settle"), TimeoutError("nor now")]
    warming.offer(kind())
    began = time.monotonic()
    await until(lambda: has(warming, "one"))
    assert len(make.begun) == 3
    assert time.monotonic() - began >= 0.05 + 0.1


async def test_what_fails_again_and_again_waits_for_a_fork(
    warming: Prewarming, make: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prewarm, "_AGAIN_AFTER_S", 0.0)
    make.errors = [AgentTimeout("no")] * 4
    warming.offer(kind())
    await until(lambda: len(make.begun) == 4)
    await asyncio.sleep(0.1)
    assert len(make.begun) == 4
    warming.forked(kind())
    await until(lambda: has(warming, "one"))


async def test_a_host_that_cannot_is_not_asked_again(warming: Prewarming, make: Maker) -> None:
    make.errors = [HostLacks("no such processor")]
    warming.offer(kind())
    await until(lambda: len(make.begun) == 1)
    await asyncio.sleep(0.02)
    warming.forked(kind())
    await warming.wait_for_many(kind(), 20)
    assert make.begun == ["one"]


async def test_many_forks_wait_for_it(warming: Prewarming, make: Maker) -> None:
    make.takes_s = 0.02
    await warming.wait_for_many(kind(), 20)
    assert has(warming, "one")
    assert make.urgencies[0].is_set


async def test_many_forks_wait_no_longer_than_starting_them_takes(warming: Prewarming, make: Maker) -> None:
    for _ in range(30):
        warming.started("one", 20, 0.1)
    make.takes_s = 60
    began = time.monotonic()
    await warming.wait_for_many(kind(), 20)
    assert time.monotonic() - began < 1
    assert not has(warming, "one")
    # The next call does not wait for a pre-warm that has just taken too long.
    make.takes_s = 0
    await warming.wait_for_many(kind(), 20)
    assert len(make.begun) == 1
    await until(lambda: has(warming, "one"))


async def test_many_forks_never_wait_long_for_one_that_does_not_settle(
    warming: Prewarming, make: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forks on a busy host took minutes. That is no reason to wait minutes for a pre-warm."""
    monkeypatch.setattr(prewarm, "_MOST_WAIT_S", 0.1)
    warming.started("one", 20, 400.0)
    make.takes_s = 60
    began = time.monotonic()
    await warming.wait_for_many(kind(), 20)
    assert time.monotonic() - began < 1
    assert not has(warming, "one")


async def test_a_distrusted_image_is_not_made_again(warming: Prewarming, make: Maker) -> None:
    await warming.wait_for_many(kind(), 20)
    item = warming.pool.find(Level.PREWARMED, "one")
    assert item is not None
    item.content.on_distrust()
    assert not has(warming, "one")
    await warming.wait_for_many(kind(), 20)
    warming.offer(kind())
    await asyncio.sleep(0.05)
    assert make.begun == ["one"]


async def test_the_image_of_a_snapshot_that_was_forked_replaces_others(
    warming: Prewarming, make: Maker
) -> None:
    for name in "abcd":
        await warming.wait_for_many(kind(name), 20)
        item = warming.pool.find(Level.PREWARMED, name)
        assert item is not None
        item.use()
    warming.offer(kind("e"))
    await asyncio.sleep(0.1)
    assert make.begun == list("abcd")
    warming.forked(kind("e"))
    await until(lambda: has(warming, "e"))


async def test_many_forks_hurry_one_that_runs_in_the_background(warming: Prewarming, make: Maker) -> None:
    make.takes_s = 0.1
    warming.offer(kind())
    await until(lambda: len(make.begun) == 1)
    heard = []
    make.urgencies[0].listen(lambda: heard.append(True))
    work = asyncio.create_task(warming.wait_for_many(kind(), 20))
    await asyncio.sleep(0.01)
    warming.demand.notice()  # the pre-warm no longer gives way
    await work
    assert (heard, make.begun, make.cut_off) == ([True], ["one"], 0)
    assert has(warming, "one")


async def test_many_forks_do_not_wait_for_another_snapshots(warming: Prewarming, make: Maker) -> None:
    make.takes_s = 0.05
    warming.offer(kind("other"))
    await until(lambda: make.begun == ["other"])
    await warming.wait_for_many(kind(), 20)
    assert has(warming, "one")
    assert make.cut_off == 1
    await until(lambda: has(warming, "other"))


async def test_the_last_two_of_many_snapshots_are_done(warming: Prewarming, make: Maker) -> None:
    with warming.demand.holding():
        for name in "abcd":
            warming.offer(kind(name))
    await until(lambda: len(make.begun) == 2)
    await asyncio.sleep(0.05)
    assert make.begun == ["d", "c"]


async def test_a_deleted_snapshot_is_none(warming: Prewarming, make: Maker) -> None:
    make.takes_s = 0.03
    warming.offer(kind())
    await until(lambda: len(make.begun) == 1)
    warming.forget("one")
    await asyncio.sleep(0.1)
    assert not has(warming, "one")
    assert make.begun == ["one"]


async def test_it_can_be_switched_off(warming: Prewarming, make: Maker) -> None:
    warming.is_on = False
    warming.offer(kind())
    for _ in range(20):
        warming.forked(kind())
    await warming.wait_for_many(kind(), 20)
    await asyncio.sleep(0.1)
    assert make.begun == []


async def test_all_parts_of_a_project_are_pre_warmed(warming: Prewarming, make: Maker) -> None:
    warming.offer(kind("old"))
    for name in "abcd":
        warming.offer(kind(name, part_of="shop"))
    warming.offer(kind("new"))
    await until(lambda: all(has(warming, name) for name in (*"abcd", "new")))
    assert not has(warming, "old")
