"""The common moment of captures of several machines."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from bough.errors import HostLacks, MachineFailed, NoSpace
from bough.snapshots.moment import Meeting, capture_together


class Machines:
    """Captures of machines without machines: `did` has the steps in order."""

    def __init__(self) -> None:
        self.did: list[str] = []
        self.stopped: set[str] = set()
        self.hold_fails = False
        self.moment_over = asyncio.Event()

    @contextlib.asynccontextmanager
    async def hold(self) -> AsyncIterator[None]:
        if self.hold_fails:
            raise HostLacks("no switch")
        self.did.append("hold")
        try:
            yield
        finally:
            self.did.append("release")

    async def capture(
        self,
        name: str,
        moment: Meeting,
        *,
        copy_s: float = 0,
        fails: str = "",
        wait: asyncio.Event | None = None,
    ) -> str:
        await asyncio.sleep(copy_s)
        if fails == "copy":
            raise NoSpace(name)
        await moment.begin()
        self.did.append(f"stop {name}")
        self.stopped.add(name)
        try:
            if fails == "save":
                raise MachineFailed(name)
            await moment.end()
        finally:
            self.did.append(f"cont {name}")
            self.stopped.remove(name)
            self.moment_over.set()
        if wait is not None:
            await wait.wait()
        if fails == "write":
            raise NoSpace(name)
        self.did.append(f"written {name}")
        return name


async def test_no_machine_runs_before_all_are_saved() -> None:
    machines = Machines()
    captures = [
        lambda moment, number=number: machines.capture(str(number), moment, copy_s=number / 100)
        for number in range(3)
    ]
    assert await capture_together(captures, machines.hold) == ["0", "1", "2"]
    did = machines.did
    assert did[0] == "hold"
    assert {*did[1:4]} == {"stop 0", "stop 1", "stop 2"}
    assert {*did[4:]} == {"release", *(f"{what} {n}" for what in ("cont", "written") for n in range(3))}


@pytest.mark.parametrize(("fails", "error"), [("copy", NoSpace), ("save", MachineFailed)])
async def test_a_failure_ends_the_moment_for_all(fails: str, error: type[Exception]) -> None:
    machines = Machines()
    with pytest.raises(error, match=r"^bad$"):
        await capture_together(
            [
                lambda moment: machines.capture("good", moment),
                lambda moment: machines.capture("bad", moment, fails=fails, copy_s=0.01),
                lambda moment: machines.capture("slow", moment, copy_s=0.1),
            ],
            machines.hold,
        )
    assert not machines.stopped
    assert not any("written" in what for what in machines.did)
    assert machines.did.count("hold") == machines.did.count("release")


async def test_a_failure_after_the_moment_completes_the_others() -> None:
    machines = Machines()
    with pytest.raises(NoSpace, match=r"^bad$"):
        await capture_together(
            [
                lambda moment: machines.capture("good", moment),
                lambda moment: machines.capture("bad", moment, fails="write"),
            ],
            machines.hold,
        )
    assert "written good" in machines.did


async def test_frames_that_cannot_be_held_end_the_moment() -> None:
    machines = Machines()
    machines.hold_fails = True
    with pytest.raises(HostLacks, match="no switch"):
        await capture_together([lambda moment: machines.capture("web", moment)], machines.hold)
    assert machines.did == []


async def test_a_cancelled_call_calls_the_moment_off() -> None:
    machines = Machines()
    task = asyncio.create_task(
        capture_together(
            [
                lambda moment: machines.capture("ready", moment),
                lambda moment: machines.capture("copies", moment, copy_s=0.5),
            ],
            machines.hold,
        )
    )
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert machines.did == []


async def test_a_call_cancelled_after_the_moment_waits_for_the_captures() -> None:
    machines, may_write = Machines(), asyncio.Event()
    task = asyncio.create_task(
        capture_together([lambda moment: machines.capture("web", moment, wait=may_write)], machines.hold)
    )
    await machines.moment_over.wait()
    task.cancel()
    await asyncio.sleep(0.01)
    assert not task.done()
    may_write.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert machines.did[-1] == "written web"
