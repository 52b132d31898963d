"""Time-outs that follow progress, with a fake of time: nothing here sleeps."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from typing import Any

import pytest

from bough.progress_watch import ProgressWatch, Stalled


class World:
    """A clock, a process and a console, all set by hand.

    Attributes:
        share: of a processor that the process gets.
        wants: the share that the process would use alone.
        prints_every_s: None: no output.
    """

    def __init__(
        self, *, share: float = 0.0, wants: float = 0.0, prints_every_s: float | None = None
    ) -> None:
        self.now = 1000.0
        self.used = 7.0
        self.share, self.wants, self.prints_every_s = share, wants, prints_every_s
        self.at: list[tuple[float, Callable[[], None]]] = []

    def clock(self) -> float:
        return self.now

    def used_s(self) -> float | None:
        return self.used

    def wants_processor(self) -> bool:
        return self.wants > 0.5

    def printed(self) -> object:
        return None if self.prints_every_s is None else int((self.now - 1000) / self.prints_every_s)

    async def pause(self, _: Collection[asyncio.Task[Any]], seconds: float) -> object:
        self.now += seconds
        self.used += seconds * min(self.share, self.wants)
        for moment, action in self.at:
            if self.now - 1000 >= moment:
                action()
        await asyncio.sleep(0)
        return None

    def watch(self, quiet_s: float = 120, **given: Any) -> ProgressWatch:
        return ProgressWatch(
            quiet_s, signs=[self.printed], work=self, clock=self.clock, pause=self.pause, **given
        )

    async def waited_s(self, watch: ProgressWatch) -> float:
        assert not await watch.until(asyncio.Event())
        return self.now - 1000


@pytest.mark.parametrize(
    ("world", "waits_s"),
    [
        pytest.param(World(), 120, id="nothing moves"),
        pytest.param(World(share=1, wants=0.025), 120, id="idle, with a clock that ticks"),
        pytest.param(World(share=1, wants=1), 120, id="spins on a quiet host"),
        pytest.param(World(share=0.25, wants=1), 480, id="spins on a busy host"),
        pytest.param(World(share=0.02, wants=1), 3600, id="gets nearly nothing of the host"),
        pytest.param(World(prints_every_s=100), 3600, id="prints for ever"),
    ],
)
async def test_how_long_a_silent_guest_is_waited_for(world: World, waits_s: float) -> None:
    assert await world.waited_s(world.watch()) == pytest.approx(waits_s, rel=0.03)


async def test_a_slow_guest_that_answers_late_is_waited_for() -> None:
    world, answered = World(share=0.2, wants=1, prints_every_s=90), asyncio.Event()
    world.at.append((400, answered.set))
    assert await world.watch().until(answered)
    assert world.now - 1000 == pytest.approx(400, abs=2)


@pytest.mark.parametrize("world", [World(), World(share=0.1, wants=1, prints_every_s=1)])
async def test_the_bound_of_a_user_holds(world: World) -> None:
    watch = world.watch(bound_s=300)
    assert await world.waited_s(watch) == pytest.approx(300, abs=0.1)
    assert watch.why == "within 300 s"


async def test_one_that_does_nothing_is_given_up_sooner() -> None:
    world = World()
    assert await world.waited_s(world.watch(60, idle_s=10)) == pytest.approx(10, abs=2)
    busy = World(share=1, wants=1)
    assert await busy.waited_s(busy.watch(60, idle_s=10)) == pytest.approx(60, abs=2)


async def test_a_process_that_is_gone_counts_as_idle() -> None:
    world = World()
    world.used_s = lambda: None  # type: ignore[method-assign]
    assert await world.waited_s(world.watch()) == pytest.approx(120, abs=2)


async def test_work_is_run_and_ended() -> None:
    async def answer() -> int:
        return 7

    assert await World().watch().run(answer()) == 7

    async def refuse() -> int:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await World().watch().run(refuse())

    ended = []

    async def hang() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    with pytest.raises(Stalled, match="did nothing|no sign"):
        await World().watch().run(hang())
    assert ended == [True]

    waiting = asyncio.create_task(ProgressWatch(60).run(hang()))
    for _ in range(3):
        await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert ended == [True, True]
