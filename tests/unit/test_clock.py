"""The moments at which a guest's clock is set."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import Any, TypeVar, cast

import pytest

from bough.errors import AgentTimeout
from bough.guest.channel import AgentChannel
from bough.machines import clock
from bough.machines.clock import ClockKeeper, follow_host, offset_ns
from bough.machines.record import MachineRecord
from bough.machines.state import State
from bough.spec import parse_spec

T = TypeVar("T")


class _Record:
    def __init__(self, setting: str = "utc") -> None:
        self.spec = parse_spec({"image": "debian:12", "clock": setting})
        self.standby = False
        self.identity = "known"
        self.clock_fault = None


class _Channel:
    """A channel whose calls take the seconds in `ways`, one after the other."""

    def __init__(self, *ways: float) -> None:
        self.told: list[int] = []
        self._ways = list(ways)

    async def call(self, operation: str, arguments: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        assert operation == "set_clock"
        self.told.append(arguments["unix_ns"])
        way = self._ways.pop(0) if self._ways else 0.0
        if way < 0:
            raise AgentTimeout("it hangs")
        await asyncio.sleep(way)
        return {}

    async def ping(self, timeout_s: float) -> float:
        return 0.01


class _Machine:
    def __init__(self, channel: _Channel | None, setting: str = "utc") -> None:
        self.record = cast(MachineRecord, _Record(setting))
        self.state = State.RUNNING
        self.channel = channel
        self.tasks: list[asyncio.Task[Any]] = []

    def answering(self) -> AgentChannel | None:
        return cast("AgentChannel | None", self.channel)

    def change(self, *, event: bool = True, **fields: Any) -> None:
        for name, value in fields.items():
            object.__setattr__(self.record, name, value)

    def own(self, work: Coroutine[Any, Any, T], what: str) -> asyncio.Task[T]:
        self.tasks.append(asyncio.create_task(work))
        return self.tasks[-1]


def _event(moment_s: float) -> dict[str, Any]:
    seconds = int(moment_s)
    return {"timestamp": {"seconds": seconds, "microseconds": round((moment_s - seconds) * 1e6)}}


def _hold(keeper: ClockKeeper, seconds: float) -> None:
    began = time.time() - 10
    keeper.vcpus_stopped(_event(began))
    keeper.vcpus_run(_event(began + seconds))


@pytest.mark.parametrize(("setting", "offset_s"), [("utc", 0), ("local", 0), ("-7d", -604800), ("+2h", 7200)])
def test_the_offset(setting: str, offset_s: int) -> None:
    assert offset_ns(cast(MachineRecord, _Record(setting))) == offset_s * 10**9


async def test_short_holds_add_up() -> None:
    channel = _Channel()
    machine = _Machine(channel)
    keeper = ClockKeeper(machine)
    _hold(keeper, 0.02)
    assert not machine.tasks
    _hold(keeper, 0.02)
    await asyncio.gather(*machine.tasks)
    assert len(channel.told) == 1
    _hold(keeper, 0.02)
    assert len(machine.tasks) == 1, "what is made up for counts again"


async def test_an_offset_and_a_slow_way() -> None:
    channel = _Channel(0.3)
    machine = _Machine(channel, "-7d")
    await clock.set_clock(cast(AgentChannel, channel), machine.record)
    assert len(channel.told) == 2
    assert abs(channel.told[-1] / 1e9 + 604800 - time.time()) < 0.1


@pytest.mark.parametrize("channel", [None, _Channel(-1)])
async def test_a_guest_that_does_not_answer_is_told_when_it_does(channel: _Channel | None) -> None:
    machine = _Machine(channel)
    _hold(ClockKeeper(machine), 3.0)
    await asyncio.gather(*machine.tasks)
    assert machine.record.identity == "clock"


async def test_a_start_is_no_hold_and_one_that_stands_by_waits() -> None:
    machine = _Machine(_Channel())
    keeper = ClockKeeper(machine)
    keeper.vcpus_run(_event(time.time()))
    machine.record.standby = True
    _hold(keeper, 3.0)
    assert not machine.tasks


async def test_stamps_that_make_no_sense() -> None:
    machine = _Machine(_Channel())
    keeper = ClockKeeper(machine)
    stamps: tuple[Any, ...] = (None, 5, {"seconds": "x"}, {"seconds": 1 << 80, "microseconds": 0})
    for stamp in stamps:
        keeper.vcpus_stopped({"timestamp": stamp})
        keeper.vcpus_run({"timestamp": stamp})
    assert not machine.tasks


async def test_a_host_that_slept() -> None:
    machine, ahead = _Machine(_Channel()), [100.0]
    keeper = ClockKeeper(machine)
    follow = follow_host(lambda: [keeper], ahead=lambda: ahead[0], every_s=0.01)
    following = asyncio.create_task(follow)
    await asyncio.sleep(0.1)
    assert not machine.tasks
    ahead[0] += 1800
    while not machine.tasks:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    following.cancel()
