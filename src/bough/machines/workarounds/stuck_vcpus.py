"""Free vCPUs that hang on a stale translation of QEMU.

QEMU emulates several vCPUs in parallel: one vCPU may change code while QEMU translates the code for another.
QEMU before 8.1 sometimes misses the change, because QEMU reads the code before it locks the code's page
(fixed by commit deba78709ae8, "accel/tcg: Always lock pages before translation"). The vCPU then runs the old
code until the memory is written again. Linux changes its own code at run time: first a breakpoint on the
first byte, then the other bytes, then the first byte (arch/x86/kernel/alternative.c, text_poke_bp_batch). A
vCPU with a stale breakpoint meets the breakpoint for ever: the kernel finds no breakpoint in memory and tries
the instruction again (kprobe_int3_handler). The guest hangs, during its boot or years later. With QEMU 7.2 a
Debian on two vCPUs hung within seconds when it only switched one branch of its kernel.

A vCPU counts as stuck if two looks in a row find two signs. QEMU is busy. Each sample of the vCPU is either
at one kernel address without a breakpoint, or elsewhere with interrupts off. QEMU then writes the bytes at
the address once more, unchanged, and drops the stale translation. The write changes nothing in the
guest, even if the vCPU was not stuck.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from bough.errors import BoughError
from bough.machines.debugger import debugger
from bough.machines.record import MachineRecord
from bough.machines.state import State
from bough.machines.vcpus import Vcpu, read_byte, read_vcpus
from bough.qemu.arch import architecture
from bough.qemu.gdb import write_back
from bough.qemu.pid import Pid
from bough.qemu.qmp import Qmp
from bough.qemu.ram import PAGE_BYTES
from bough.tasks import finish

log = logging.getLogger("bough.machines")

_LOOK_EVERY_S = 3.0
#: Share of a processor. A QEMU below the share, emulation included, has no stuck vCPU.
_LEAST_BUSY = 0.1
_SAMPLES = 16
_SAMPLE_S = (0.004, 0.012)
#: Samples at the address itself. A stuck vCPU is at the address half of the time; a long loop is at no
#: address so often.
_LEAST_THERE = _SAMPLES // 5
_BREAKPOINT = 0xCC
#: Time to ignore an address at which a vCPU stays after the write: the vCPU was not stuck.
_INNOCENT_S = 600.0
#: The first QEMU that does not miss a change.
FIXED = (8, 1)
#: Variable in the environment of the service: "on" watches every QEMU, "off" none; by default, QEMUs before
#: FIXED are watched.
SWITCH = "BOUGH_FREE_VCPUS"
#: No instruction is longer. A write to any byte drops each translation that includes the byte.
_WRITTEN_BYTES = 16


class Host(Protocol):
    """The parts of a machine that StuckVcpus uses."""

    @property
    def record(self) -> MachineRecord: ...
    @property
    def name(self) -> str: ...
    @property
    def state(self) -> State: ...
    @property
    def pid(self) -> int | None: ...
    @property
    def is_free(self) -> bool: ...
    def qmp(self) -> Qmp: ...
    def operation(self, doing: str, *allowed: State) -> AbstractAsyncContextManager[None]: ...
    def tell(self, kind: str, detail: str = "") -> None: ...
    def own(self, work: Coroutine[Any, Any, None], what: str) -> asyncio.Task[None]: ...


@dataclass(frozen=True)
class Caught:
    """A stuck vCPU: its number, and the virtual address of the stale code."""

    vcpu: int
    address: int


def can_be(record: MachineRecord, accelerator: str | None) -> bool:
    """Return whether vCPUs of this machine get stuck with a QEMU before FIXED."""
    is_pc = architecture(record.hardware.arch).is_pc
    return is_pc and accelerator == "tcg" and record.spec.vcpus > 1


def is_watched(version: tuple[int, int], environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether the vCPUs of a QEMU of this version are watched. An unknown value of SWITCH counts as
    unset.
    """
    switch = environment.get(SWITCH, "").lower()
    if switch in ("on", "1", "yes", "true"):
        return True
    return version < FIXED and switch not in ("off", "0", "no", "false")


class StuckVcpus:
    """The watch over the vCPUs of one machine. A task frees and reports stuck vCPUs until QEMU ends."""

    def __init__(self, machine: Host) -> None:
        self._machine = machine
        self._pid: int | None = None

    def begin(self, accelerator: str | None, version: tuple[int, int]) -> None:
        """Begin for the running QEMU, if its vCPUs can get stuck. A second call for the same process does
        nothing.

        Args:
            version: of QEMU, from its greeting.
        """
        machine = self._machine
        if machine.pid == self._pid or not can_be(machine.record, accelerator) or not is_watched(version):
            return
        self._pid = machine.pid
        machine.own(self._follow(), "look after its vCPUs")

    async def _follow(self) -> None:
        try:
            await self._look_until_end()
        finally:
            self._pid = None

    async def _look_until_end(self) -> None:
        machine = self._machine
        process = Pid.of(machine.pid) if machine.pid is not None else None
        watch, used_s = _Watch(machine), 0.0
        while process is not None and (used_now_s := process.used_s()) is not None:
            is_busy, used_s = used_now_s - used_s > _LEAST_BUSY * _LOOK_EVERY_S, used_now_s
            if is_busy and machine.state is State.RUNNING and machine.is_free:
                try:
                    await watch.look()
                except (BoughError, OSError) as error:  # QEMU has just ended, or another operation runs
                    log.info("vCPUs of machine %s that may hang were not freed: %s", machine.name, error)
            else:
                watch.seen.clear()
            await asyncio.sleep(_LOOK_EVERY_S)


class _Watch:
    """The looks at one machine; `seen` has the findings of the last look."""

    def __init__(self, machine: Host) -> None:
        self._machine = machine
        self.seen: set[Caught] = set()
        #: Address -> time (time.monotonic) of the proof that a vCPU at the address is not stuck.
        self._innocent: dict[int, float] = {}

    async def look(self) -> None:
        """Look once, and free vCPUs that two looks found. Raises BoughError, OSError."""
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
        async with machine.operation("being freed", State.RUNNING), _standing_still(qmp):
            async with debugger(qmp) as connection:
                places = [(one.vcpu, one.address, _bytes_at(one.address)) for one in caught]
                await asyncio.to_thread(write_back, connection, places)
        still = caught & await find_caught(qmp)
        self._innocent |= dict.fromkeys((one.address for one in still), time.monotonic())
        if freed := caught - still:
            where = ", ".join(f"vCPU {one.vcpu} at {one.address:#x}" for one in freed)
            told = f"it hung on a stale translation of QEMU: {where}"
            log.warning("machine %s was freed: %s", machine.name, told)
            machine.tell("freed", told)


async def find_caught(qmp: Qmp) -> set[Caught]:
    """Return the vCPUs that seem stuck, in some 0.1 s; usually the first sample excludes all. Raises
    BoughError.
    """
    samples: list[list[Vcpu]] = []
    inside: set[int] | None = None
    while len(samples) < _SAMPLES:
        vcpus = await read_vcpus(qmp)
        there = {number for number, one in enumerate(vcpus) if one.ring == 0 and not one.is_halted}
        inside = there if inside is None else inside & there
        if not inside:
            return set()
        samples.append(vcpus)
        # Random pauses, so that the samples do not match a rhythm of the guest.
        await asyncio.sleep(random.uniform(*_SAMPLE_S))
    found = set()
    for number in inside or ():
        address = place_of([sample[number] for sample in samples])
        if address is not None and await read_byte(qmp, number, address) not in (None, _BREAKPOINT):
            found.add(Caught(number, address))
    return found


def place_of(samples: list[Vcpu]) -> int | None:
    """Return the address at which a vCPU hangs, from samples inside the kernel, or None."""
    address, count = Counter(one.address for one in samples).most_common(1)[0]
    elsewhere = [one for one in samples if one.address != address]
    if count < _LEAST_THERE or not elsewhere or any(one.takes_interrupts for one in elsewhere):
        return None
    return address


def _bytes_at(address: int) -> int:
    """Return how many bytes to write at the address. The next page may not exist."""
    return min(_WRITTEN_BYTES, PAGE_BYTES - address % PAGE_BYTES)


@asynccontextmanager
async def _standing_still(qmp: Qmp) -> AsyncIterator[None]:
    await qmp.execute("stop")
    try:
        yield
    finally:
        await finish(qmp.execute("cont"))
