"""The pool of what is kept for later forks: the choice, the lifetime and the eviction."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field, replace
from functools import partial

import pytest

from bough.errors import MachineFailed
from bough.forks import pool as pool_module
from bough.forks.level import RULES, Level, Rule
from bough.forks.pool import Item, Pool


@dataclass
class Host:
    is_short: bool = False
    discarded: list[str] = field(default_factory=list)

    async def discard(self, name: str) -> None:
        await asyncio.sleep(0)
        self.discarded.append(name)


@pytest.fixture
def host() -> Host:
    return Host()


@pytest.fixture(autouse=True)
def rules(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[Level, Rule]]:
    monkeypatch.setattr(pool_module, "_LOOK_EVERY_S", 0.01)
    before = dict(RULES)
    yield RULES
    RULES.clear()
    RULES.update(before)


@pytest.fixture
async def pool(host: Host) -> AsyncIterator[Pool]:
    pool = Pool(is_short=lambda: host.is_short)
    yield pool
    await pool.close()
    assert pool.items(*Level) == []


def put(pool: Pool, name: str, level: Level = Level.PREWARMED) -> Item:
    item = Item(level, name, name)
    pool.put(item)
    return item


def names(pool: Pool, level: Level = Level.PREWARMED) -> str:
    return "".join(item.snapshot_id for item in pool.items(level))


def test_each_level_has_a_rule() -> None:
    assert list(RULES) == list(Level)
    assert Level.BOOTED < Level.PREWARMED < Level.LOADED < Level.STANDBY < Level.RUNNING


async def test_it_is_found_until_its_snapshot_goes(pool: Pool) -> None:
    assert pool.find(Level.PREWARMED, "one") is None
    item = put(pool, "one")
    assert pool.find(Level.PREWARMED, "one") is item
    assert not pool.has(Level.LOADED, "one")
    pool.forget("one")
    assert not pool.has(Level.PREWARMED, "one")


async def test_a_deleted_snapshot_takes_its_loaded_forks_along(pool: Pool, host: Host) -> None:
    pool.put(Item(Level.LOADED, "one", "fork", partial(host.discard, "fork")))
    pool.put(Item(Level.STANDBY, "one", "machine", partial(host.discard, "machine"), "request"))
    pool.forget("one")
    await pool.clear()
    assert host.discarded == ["fork"]
    assert names(pool, Level.STANDBY) == "one"


async def test_those_used_last_are_kept(pool: Pool) -> None:
    for name in "abcd":
        put(pool, name)
    pool.items(Level.PREWARMED)[0].use()
    put(pool, "e")
    assert names(pool) == "acde"


async def test_those_that_were_never_used_make_way(pool: Pool) -> None:
    for name in "abcd":
        put(pool, name)
    pool.items(Level.PREWARMED)[0].use()
    put(pool, "e")
    put(pool, "f")
    assert names(pool) == "adef"


async def test_levels_and_requests_do_not_count_together(pool: Pool) -> None:
    for name in "abcd":
        put(pool, name)
    put(pool, "l", Level.LOADED)
    for request in ("one", "two"):
        pool.put(Item(Level.RUNNING, "r", "machine", request=request))
    assert (names(pool), names(pool, Level.LOADED), names(pool, Level.RUNNING)) == ("abcd", "l", "rr")
    put(pool, "m", Level.LOADED)
    put(pool, "n", Level.LOADED)
    assert names(pool, Level.LOADED) == "mn"


async def test_what_is_taken_is_not_discarded(pool: Pool, host: Host) -> None:
    item = Item(Level.LOADED, "one", "fork", partial(host.discard, "fork"))
    pool.put(item)
    pool.take(item)
    await pool.clear(*Level)
    assert host.discarded == []


async def test_unused_they_go(pool: Pool, rules: dict[Level, Rule]) -> None:
    rules[Level.PREWARMED] = Rule(most=4, kept_s=1800.0, kept_unused_s=0.05)
    put(pool, "one")
    await asyncio.sleep(0.3)
    assert names(pool) == ""
    put(pool, "two").use()  # and are watched again
    await asyncio.sleep(0.3)
    assert names(pool) == "two"
    rules[Level.PREWARMED] = replace(rules[Level.PREWARMED], kept_s=0.05)
    await asyncio.sleep(0.3)
    assert names(pool) == ""


async def test_standby_machines_stay_until_they_are_taken(pool: Pool) -> None:
    assert Item(Level.STANDBY, "one", "machine").expires() is None


async def test_while_memory_is_short_nothing_is_kept(pool: Pool, host: Host) -> None:
    async def fails() -> None:
        raise MachineFailed("it is being deleted")

    put(pool, "one")
    pool.put(Item(Level.LOADED, "one", "fork", fails))
    pool.put(Item(Level.STANDBY, "one", "machine", partial(host.discard, "machine"), "request"))
    host.is_short = True
    await asyncio.sleep(0.1)
    assert pool.items(*Level) == []
    assert host.discarded == ["machine"]


async def test_the_parts_of_a_project_count_as_one(rules: dict[Level, Rule]) -> None:
    rules[Level.PREWARMED] = Rule(most=2, kept_s=None)
    pool = Pool(lambda: False)
    for snapshot, group in (("a", "shop"), ("b", "shop"), ("c", "shop"), ("d", None)):
        pool.put(Item(Level.PREWARMED, snapshot, None, group=group))
    assert [item.snapshot_id for item in pool.items(Level.PREWARMED)] == ["a", "b", "c", "d"]
    pool.items(Level.PREWARMED)[0].use()
    pool.put(Item(Level.PREWARMED, "e", None))
    assert [item.snapshot_id for item in pool.items(Level.PREWARMED)] == ["a", "b", "c", "e"]
    await pool.close()
