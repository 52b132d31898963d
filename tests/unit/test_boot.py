"""The end of a guest's boot, with a fake of its agent."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine
from types import SimpleNamespace
from typing import Any

import pytest

from bough.errors import AgentUnavailable, DeadlineExceeded
from bough.guest.channel import AgentChannel
from bough.guest.facts import AgentFacts
from bough.machines.boot import Boot
from bough.progress_watch import ProgressWatch, by_the_clock

BOOT = "01234567-89ab-cdef-0123-456789abcdef"


class Script:
    """A session that prints when the test lets it."""

    def __init__(self, told: str | AgentUnavailable, go_on: asyncio.Event) -> None:
        self._told, self._go_on = told, go_on

    async def __aiter__(self) -> AsyncIterator[tuple[str, bytes]]:
        await self._go_on.wait()
        if isinstance(self._told, AgentUnavailable):
            raise self._told
        yield "stdout", self._told.encode()

    async def abort(self) -> None:
        pass


class Guest:
    """A machine and its agent's channel in one object."""

    def __init__(
        self, *answers: str | AgentUnavailable, booted: str | None = None, standby: bool = False
    ) -> None:
        self.record: Any = SimpleNamespace(booted_boot=booted, standby=standby)
        self.boot_id: str | None = BOOT
        self.answers = list(answers)
        self.go_on = asyncio.Event()
        self.ran = 0
        self.told: list[str] = []
        self.tasks: list[asyncio.Task[Any]] = []
        self.patience = by_the_clock

    def change(self, **fields: Any) -> None:
        vars(self.record).update(fields)

    def own(self, work: Coroutine[Any, Any, Any], what: str) -> asyncio.Task[Any]:
        self.tasks.append(asyncio.create_task(work))
        return self.tasks[-1]

    def tell(self, kind: str, detail: str = "") -> None:
        self.told.append(kind)

    async def exec(self, request: object) -> Script:
        self.ran += 1
        return Script(self.answers.pop(0), self.go_on)


async def follow(guest: Any) -> Boot:
    boot = Boot(guest)
    boot.follow(guest)
    await asyncio.sleep(0)
    return boot


async def test_it_is_found_out_once_and_kept() -> None:
    guest = Guest(f"booted {BOOT}\n")
    boot = await follow(guest)
    assert not boot.has_ended
    asked = asyncio.create_task(boot.ask(guest))  # type: ignore[arg-type]
    guest.go_on.set()
    await asyncio.gather(asked, *guest.tasks)
    assert boot.has_ended
    assert (guest.ran, guest.told, guest.record.booted_boot) == (1, ["booted"], BOOT)
    guest.boot_id = "another"
    assert not boot.has_ended, "its guest has rebooted"


async def test_a_run_from_before_a_reboot_is_not_believed() -> None:
    guest = Guest(f"booted {BOOT}\n", "stopping\n")
    boot = await follow(guest)
    asked = asyncio.create_task(boot.ask(guest, since=time.monotonic()))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    guest.go_on.set()
    assert await asked == "stopping\n"
    assert guest.ran == 2


@pytest.mark.parametrize(("booted", "standby"), [(BOOT, False), (None, True)])
async def test_what_is_not_asked(booted: str | None, standby: bool) -> None:
    guest = Guest(booted=booted, standby=standby)
    await follow(guest)
    assert (guest.ran, guest.tasks) == (0, [])


async def test_an_agent_that_goes_away_is_followed_no_more() -> None:
    guest = Guest(AgentUnavailable("gone"))
    guest.go_on.set()
    boot = await follow(guest)
    await asyncio.gather(*guest.tasks, return_exceptions=True)
    assert not boot.has_ended


async def test_who_waits_no_longer_leaves_the_others_waiting() -> None:
    guest = Guest(f"booted {BOOT}\n")
    boot = await follow(guest)
    with pytest.raises(DeadlineExceeded, match="within 0.01 s"):
        await boot.ask(guest, ProgressWatch(1, bound_s=0.01))  # type: ignore[arg-type]
    guest.go_on.set()
    await asyncio.gather(*guest.tasks)
    assert boot.has_ended


@pytest.mark.parametrize("told", ["", "stopping\n", "booted\n", f"booted {BOOT} or so\n", "x" * 100_000])
async def test_hostile_answers_are_none(told: str) -> None:
    guest: Any = Guest()
    assert not Boot(guest).note(told)
    assert guest.record.booted_boot is None


# -- guests without systemd -------------------------------------------------------------------------


class OtherInit(AgentChannel):
    """The channel to an agent that answers `await_boot`."""

    def __init__(self, state: str, init: str = "busybox") -> None:
        self.facts = AgentFacts("1", BOOT, "a", "6.1", "x86_64", init=init)
        self.state = state
        self.asked: list[str] = []

    async def call(self, operation: str, *_: Any, **__: Any) -> dict[str, Any]:
        self.asked.append(operation)
        return {"state": self.state, "boot_id": BOOT}


@pytest.mark.parametrize(
    ("state", "told"),
    [("running", f"booted {BOOT}"), ("unknown", f"unknown {BOOT}"), ("stopping", "stopping")],
)
async def test_the_agent_knows_other_inits(state: str, told: str) -> None:
    guest = Guest()
    channel = OtherInit(state)
    assert await Boot(guest).ask(channel) == told
    assert channel.asked == ["await_boot"]
    assert guest.ran == 0


async def test_an_init_that_tells_nothing_is_asked_once() -> None:
    guest = Guest()
    channel = OtherInit("unknown", "s6")
    boot = Boot(guest)
    boot.follow(channel)
    await asyncio.gather(*guest.tasks)
    assert channel.asked == ["await_boot"]
    assert not boot.has_ended
    assert guest.told == []
