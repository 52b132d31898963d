"""vCPUs that are caught in what is not in memory any more, and how they are freed.

A QEMU that emulates several vCPUs translates code for one while another may be changing it. Where it misses
the change, and 7.2 sometimes does, that vCPU goes on with what was there before, until somebody writes there
once more. Linux changes its own code while it runs: a breakpoint on the first byte, the others, the first
byte (arch/x86/kernel/alternative.c, text_poke_bp_batch). A vCPU that keeps the breakpoint meets it for ever:
its kernel finds none in memory, and has it try again (kprobe_int3_handler). The guest hangs, in its boot or
years later: a Debian of two vCPUs that does nothing but switch one of its kernel's branches hung within
seconds with QEMU 7.2.

So whoever has its QEMU at work and is always either at one place of its kernel, where no breakpoint is, or
somewhere with interrupts off, in two looks, is taken for caught. What is at that place is written there once
more, by QEMU, which forgets what it has translated of it. Nothing in the guest is changed by that, whether it
was caught or not.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

from bough.errors import BoughError
from bough.machines.debugger import debugger
from bough.machines.record import MachineRecord, State
from bough.machines.vcpus import Vcpu, read_byte, read_vcpus
from bough.qemu.arch import architecture
from bough.qemu.gdb import write_back
from bough.qemu.pid import Pid
from bough.qemu.qmp import Qmp
from bough.qemu.ram import PAGE_BYTES

log = logging.getLogger("bough.machines")

_LOOK_EVERY_S = 3.0
#: Of a processor: who takes less, its emulation included, is not caught.
_LEAST_BUSY = 0.1
_SAMPLES = 16
_SAMPLE_S = (0.004, 0.012)
#: At the place itself: it is there half of the time, and a loop with many turns at none so often.
_LEAST_THERE = _SAMPLES // 5
_BREAKPOINT = 0xCC
#: Who is still there when it was written there once more was not caught.
_INNOCENT_S = 600.0
#: No instruction is longer, and what was translated from within is gone with any byte of it.
_WRITTEN_BYTES = 16


class Host(Protocol):
    """What `watch` needs of its machine."""

    @property
    def name(self) -> str: ...
    @property
    def state(self) -> State: ...
    @property
    def pid(self) -> int | None: ...
    @property
    def is_free(self) -> bool: ...
    def qmp(self) -> Qmp: ...
    def transition(self, doing: str, *allowed: State) -> AbstractAsyncContextManager[None]: ...
    def tell(self, kind: str, detail: str = "") -> None: ...


@dataclass(frozen=True)
class Caught:
    """`vcpu`: its number; `address`: where in its memory."""

    vcpu: int
    address: int


def can_be(record: MachineRecord, accelerator: str | None) -> bool:
    """Whether vCPUs of that machine may be caught."""
    is_pc = architecture(record.hardware.arch).is_pc
    return is_pc and accelerator == "tcg" and record.spec.vcpus > 1


async def watch(machine: Host) -> None:
    """For as long as it runs: free those of its vCPUs that are caught, and tell so."""
    process = Pid.of(machine.pid) if machine.pid is not None else None
    watch, used_s = _Watch(machine), 0.0
    while process is not None and (used_now_s := process.used_s()) is not None:
        is_busy, used_s = used_now_s - used_s > _LEAST_BUSY * _LOOK_EVERY_S, used_now_s
        if is_busy and machine.state is State.RUNNING and machine.is_free:
            try:
                await watch.look()
            except (BoughError, OSError) as error:  # it has just ended, or somebody else has its turn
                log.info("machine %s was not freed of what it may be caught in: %s", machine.name, error)
        else:
            watch.seen.clear()
        await asyncio.sleep(_LOOK_EVERY_S)


class _Watch:
    """`seen` once, and not freed yet."""

    def __init__(self, machine: Host) -> None:
        self._machine = machine
        self.seen: set[Caught] = set()
        #: Address -> since when (time.monotonic) it is known that who is there is not caught.
        self._innocent: dict[int, float] = {}

    async def look(self) -> None:
        """Raises BoughError, OSError."""
        found, now = await find_caught(self._machine.qmp()), time.monotonic()
        self._innocent = {
            place: since for place, since in self._innocent.items() if now - since < _INNOCENT_S
        }
        again = {one for one in found & self.seen if one.address not in self._innocent}
        self.seen = found - again
        if again:
            await self._free(again)

    async def _free(self, caught: set[Caught]) -> None:
        machine = self._machine
        qmp = machine.qmp()
        async with machine.transition("being freed", State.RUNNING), _standing_still(qmp):
            async with debugger(qmp) as connection:
                places = [(one.vcpu, one.address, _bytes_at(one.address)) for one in caught]
                await asyncio.to_thread(write_back, connection, places)
        still = caught & await find_caught(qmp)
        self._innocent |= dict.fromkeys((one.address for one in still), time.monotonic())
        if freed := caught - still:
            where = ", ".join(f"vCPU {one.vcpu} at {one.address:#x}" for one in freed)
            told = f"it hung in what QEMU had translated before its guest changed it: {where}"
            log.warning("machine %s was freed: %s", machine.name, told)
            machine.tell("freed", told)


async def find_caught(qmp: Qmp) -> set[Caught]:
    """Those that seem to be, in some 0.1 s; none, as a rule, at the first look. Raises BoughError."""
    samples: list[list[Vcpu]] = []
    inside: set[int] | None = None
    while len(samples) < _SAMPLES:
        vcpus = await read_vcpus(qmp)
        there = {number for number, one in enumerate(vcpus) if one.ring == 0 and not one.is_halted}
        inside = there if inside is None else inside & there
        if not inside:
            return set()
        samples.append(vcpus)
        # Else the guest's own rhythm might be met.
        await asyncio.sleep(random.uniform(*_SAMPLE_S))
    found = set()
    for number in inside or ():
        address = place_of([sample[number] for sample in samples])
        if address is not None and await read_byte(qmp, number, address) not in (None, _BREAKPOINT):
            found.add(Caught(number, address))
    return found


def place_of(samples: list[Vcpu]) -> int | None:
    """Where one vCPU is caught, by samples of it in its kernel."""
    address, count = Counter(one.address for one in samples).most_common(1)[0]
    elsewhere = [one for one in samples if one.address != address]
    if count < _LEAST_THERE or not elsewhere or any(one.takes_interrupts for one in elsewhere):
        return None
    return address


def _bytes_at(address: int) -> int:
    """How many to write there; the next page may be none."""
    return min(_WRITTEN_BYTES, PAGE_BYTES - address % PAGE_BYTES)


@asynccontextmanager
async def _standing_still(qmp: Qmp) -> AsyncIterator[None]:
    await qmp.execute("stop")
    try:
        yield
    finally:
        await qmp.execute("cont")
