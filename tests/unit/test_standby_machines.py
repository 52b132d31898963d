"""Standby machines and loaded forks: what is made, what waits in the pool, and what is handed out."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bough.errors import MachineFailed
from bough.forks import loaded, standby
from bough.forks.level import Level
from bough.forks.loaded import LoadedFork, LoadedForks
from bough.forks.pool import Item, Pool
from bough.forks.prewarm import Prewarming
from bough.forks.standby import StandbyMachines
from bough.machines.demand import Demand
from bough.machines.state import State

SPEC = {"spec": {"image": "debian:12"}}
SNAPSHOT = {"snapshot": "s1"}


class Makers:
    """Makes, wakes and discards machines that are data alone."""

    def __init__(self) -> None:
        self.made = 0
        self.discarded: list[int] = []
        self.errors: list[Exception] = []
        self.wake_errors: list[Exception] = []

    async def make(self, source: Any) -> Any:
        if self.errors:
            raise self.errors.pop(0)
        self.made += 1
        return SimpleNamespace(number=self.made, state=State.PAUSED, record=SimpleNamespace(snapshot="s1"))

    async def wake(self, machine: Any) -> None:
        if self.wake_errors:
            raise self.wake_errors.pop(0)
        machine.state = State.RUNNING

    async def discard(self, machine: Any) -> None:
        self.discarded.append(machine.number)

    async def load(self, kind: Any) -> LoadedFork:
        return LoadedFork(kind, await self.make(kind), SimpleNamespace(image=None))  # type: ignore[arg-type]


@pytest.fixture
def makers() -> Makers:
    return Makers()


@pytest.fixture
async def pool() -> AsyncIterator[Pool]:
    pool = Pool(is_short=lambda: False)
    yield pool
    await pool.close()


@pytest.fixture
async def machines(
    tmp_path: Path, pool: Pool, makers: Makers, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[StandbyMachines]:
    monkeypatch.setattr(standby, "_MAKE_AFTER_S", 0.0)
    monkeypatch.setattr(standby, "_LOOK_EVERY_S", 0.02)
    file = tmp_path / "standby.json"
    machines = StandbyMachines(file, pool, makers.make, makers.wake, makers.discard)
    machines.open()
    yield machines
    await machines.close()


async def until(condition: Any) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.002)


def states(pool: Pool) -> list[Level]:
    return [item.level for item in pool.items(Level.STANDBY, Level.RUNNING)]


async def test_the_first_of_a_run_is_running(machines: StandbyMachines, pool: Pool) -> None:
    machines.want(SPEC, 3)
    await until(lambda: sorted(states(pool)) == [Level.STANDBY, Level.STANDBY, Level.RUNNING])
    taken = machines.take(lambda _: True)
    assert taken is not None
    assert taken.state is State.RUNNING
    await until(lambda: sorted(states(pool)) == [Level.STANDBY, Level.STANDBY, Level.RUNNING])
    assert machines.describe() == [{**SPEC, "count": 3, "ready": 3, "trouble": None}]


async def test_those_of_a_snapshot_are_paused(machines: StandbyMachines, pool: Pool) -> None:
    machines.want(SNAPSHOT, 2)
    await until(lambda: states(pool) == [Level.STANDBY, Level.STANDBY])
    assert machines.count(lambda machine: machine.record.snapshot == "s1") == 2
    assert machines.take(lambda _: False) is None


async def test_fewer_and_none(machines: StandbyMachines, pool: Pool, makers: Makers) -> None:
    machines.want(SNAPSHOT, 3)
    await until(lambda: len(states(pool)) == 3)
    machines.want(SNAPSHOT, 1)
    await until(lambda: makers.discarded == [2, 3])
    machines.want(SNAPSHOT, 0)
    await until(lambda: makers.discarded == [2, 3, 1])
    assert machines.describe() == []


async def test_requests_outlive_the_service(machines: StandbyMachines, tmp_path: Path, pool: Pool) -> None:
    machines.want(SPEC, 1)
    assert json.loads((tmp_path / "standby.json").read_text()) == [{**SPEC, "count": 1}]
    await until(lambda: states(pool) == [Level.RUNNING])
    await machines.close()
    await pool.close()
    assert states(pool) == []
    machines.want(SPEC, 1)  # a request for what is requested changes nothing
    assert json.loads((tmp_path / "standby.json").read_text()) == [{**SPEC, "count": 1}]


async def test_trouble_is_reported_until_it_ends(
    machines: StandbyMachines, pool: Pool, makers: Makers
) -> None:
    makers.errors = [MachineFailed("no luck")] * 2
    machines.want(SPEC, 1)
    await until(lambda: machines.describe()[0]["trouble"] == "no luck")
    await until(lambda: states(pool) == [Level.RUNNING])
    assert machines.describe()[0]["trouble"] is None


async def test_one_that_cannot_be_woken_is_replaced(
    machines: StandbyMachines, pool: Pool, makers: Makers
) -> None:
    makers.wake_errors = [MachineFailed("it sleeps on")]
    machines.want(SPEC, 1)
    await until(lambda: machines.describe()[0]["trouble"] == "it sleeps on")
    await until(lambda: states(pool) == [Level.RUNNING])
    assert makers.discarded == [1]


async def test_none_is_made_while_memory_is_short(
    machines: StandbyMachines, pool: Pool, makers: Makers
) -> None:
    pool.is_short = lambda: True
    machines.want(SPEC, 1)
    await asyncio.sleep(0.1)
    assert makers.made == 0


# -- loaded forks -----------------------------------------------------------------------------


class Kind:
    def __init__(self, name: str = "s1") -> None:
        self.manifest = SimpleNamespace(id=name, part_of=None)

    def is_like(self, other: Kind) -> bool:
        return self.manifest.id == other.manifest.id


@pytest.fixture
async def forks(pool: Pool, makers: Makers, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[LoadedForks]:
    monkeypatch.setattr(loaded, "_LOAD_AFTER_S", 0.0)
    prewarming = Prewarming(makers.load, pool, Demand(), is_on=False)  # type: ignore[arg-type]
    forks = LoadedForks(makers.load, makers.discard, pool, prewarming)
    yield forks
    await forks.clear()


async def test_one_fork_waits_for_each_snapshot(forks: LoadedForks, pool: Pool, makers: Makers) -> None:
    kind: Any = Kind()
    forks.offer(kind)
    await until(lambda: len(pool.items(Level.LOADED)) == 1)
    with forks.forking():
        taken = forks.take(kind)
        assert taken is not None
        assert forks.take(kind) is None
        forks.expect(kind)
    await until(lambda: len(pool.items(Level.LOADED)) == 1)
    (item,) = pool.items(Level.LOADED)
    assert forks.has(item.content.machine)
    assert not forks.has(taken.machine)
    assert (makers.made, makers.discarded) == (2, [])


async def test_a_process_image_outdates_a_loaded_fork(forks: LoadedForks, pool: Pool, makers: Makers) -> None:
    kind: Any = Kind()
    forks.offer(kind)
    await until(lambda: len(pool.items(Level.LOADED)) == 1)
    pool.put(Item(Level.PREWARMED, "s1", SimpleNamespace(is_of_use=True)))
    assert forks.take(kind) is None
    await until(lambda: makers.discarded == [1])


async def test_a_loaded_fork_that_has_died_is_not_handed_out(
    forks: LoadedForks, pool: Pool, makers: Makers
) -> None:
    kind: Any = Kind()
    forks.offer(kind)
    await until(lambda: len(pool.items(Level.LOADED)) == 1)
    pool.items(Level.LOADED)[0].content.machine.state = State.FAILED
    assert forks.take(kind) is None
    await until(lambda: makers.discarded == [1])


async def test_a_deleted_snapshot_gets_no_forks(forks: LoadedForks, pool: Pool, makers: Makers) -> None:
    kind: Any = Kind()
    forks.forget("s1")
    forks.offer(kind)
    await asyncio.sleep(0.05)
    assert (makers.made, pool.items(Level.LOADED)) == (0, [])
