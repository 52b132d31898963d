"""Priorities of many forks: forks with an active client come first."""

from __future__ import annotations

import asyncio
from typing import cast

from bough.machines import cpu_priority
from bough.machines.cpu_priority import CpuPriority
from bough.qemu.process import QemuProcess


class _Process:
    """A process that records each `stand_back`; true means the background."""

    def __init__(self) -> None:
        self.told: list[bool] = []
        self.alive = True

    def is_alive(self) -> bool:
        return self.alive

    def stand_back(self, back: bool) -> None:
        self.told.append(back)


def _make(talked_to: list[bool]) -> tuple[_Process, CpuPriority]:
    process = _Process()
    return process, CpuPriority(cast(QemuProcess, process), lambda: bool(talked_to))


async def test_it_is_forward_while_it_is_talked_to() -> None:
    talked_to = [True]
    process, stands = _make(talked_to)
    stands.stand_back(True)
    stands.step_forward()
    stands.step_forward()
    await asyncio.sleep(2.5 * cpu_priority._FORWARD_S)
    assert process.told == [True, False, False]
    talked_to.clear()
    await asyncio.sleep(1.5 * cpu_priority._FORWARD_S)
    assert process.told == [True, False, False, True], "back, and once"


async def test_one_that_need_not_stand_back_stays_forward() -> None:
    process, stands = _make([])
    stands.step_forward()
    stands.stand_back(True)
    stands.step_forward()
    stands.stand_back(False)
    await asyncio.sleep(1.5 * cpu_priority._FORWARD_S)
    assert process.told == [True, False, False]


async def test_nothing_is_told_to_who_has_the_number_of_one_that_ended() -> None:
    process, stands = _make([])
    stands.stand_back(True)
    stands.step_forward()
    process.alive = False
    await asyncio.sleep(1.5 * cpu_priority._FORWARD_S)
    stands.stand_back(False)
    assert process.told == [True, False]
