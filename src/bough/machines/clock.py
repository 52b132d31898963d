"""The guest's clock: host time plus the machine's offset, after anything that held its vCPUs.

Pause, snapshot, suspend, a full disk of the host and a sleep of the host hold the vCPUs. A fork, a restored
machine and an imported machine continue from a past moment. A guest that continues from a saved state gets
the time with its identity (identity.py). A `ClockKeeper` handles all other cases. It follows QEMU's events,
so the reason of a hold does not matter.

A guest without an agent has its real-time clock only, which QEMU keeps right.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from typing import Any, Protocol, TypeVar

from bough.errors import BoughError
from bough.guest.channel import AgentChannel
from bough.guest.qga import QgaChannel
from bough.machines.record import MachineRecord
from bough.machines.state import State

T = TypeVar("T")

#: A guest's clock is set when its holds add up to more. 100 ms are promised, and setting has an error too.
_LATE_S = 0.03
#: The call waits in the port of a hung guest until the guest continues.
_ANSWER_S = 3600.0
#: The clock is set again while it may be wrong by more.
_ERROR_S = 0.07
_TRIES = 8
#: How long `go_on` waits for the guest's answer. A later answer is as good.
_PATIENCE_S = 10.0
_HOST_LOOK_S = 2.0
_HOST_STEP_S = 0.05


class Host(Protocol):
    """The parts of a machine that a ClockKeeper uses."""

    @property
    def record(self) -> MachineRecord: ...

    @property
    def state(self) -> State: ...
    def answering(self) -> AgentChannel | QgaChannel | None: ...
    def change(self, *, event: bool = ..., **fields: Any) -> None: ...
    def own(self, work: Coroutine[Any, Any, T], what: str) -> asyncio.Task[T]: ...


def offset_ns(record: MachineRecord) -> int:
    """Return by how much the guest's clock has to be ahead of the host's."""
    wrong = record.clock_fault
    ahead_s = wrong.ahead_s(time.time()) if wrong is not None else 0.0
    return round(((record.spec.clock_offset_s or 0) + ahead_s) * 1e9)


def guest_time_ns(record: MachineRecord) -> int:
    """Return the guest's time as Unix time."""
    return time.time_ns() + offset_ns(record)


def host_ahead_s() -> float:
    """Return by how much the host's clock is ahead of its monotonic clock. A sleep of the host changes the
    difference, and so does a step of the host's clock."""
    return time.time() - time.monotonic()


async def set_clock(
    channel: AgentChannel | QgaChannel, record: MachineRecord, *, timeout_s: float = 60.0
) -> None:
    """Set the guest's clock as well as it can be done over the agent's port. Raises BoughError.

    The clock is late by the way to the guest. If the answer takes long, a ping measures the way, and the
    clock is set once more.
    """
    way_s = 0.0
    for _ in range(_TRIES):
        started = time.monotonic()
        told = guest_time_ns(record) + round(way_s * 1e9)
        await channel.call("set_clock", {"unix_ns": told}, timeout_s=timeout_s)
        took_s = time.monotonic() - started
        if max(way_s, took_s - way_s) < _ERROR_S:
            return
        way_s = await channel.ping(timeout_s) / 2


class ClockKeeper:
    def __init__(self, machine: Host) -> None:
        self._machine = machine
        self._stopped_at: float | None = None
        self._late_s = 0.0
        self._setting: asyncio.Task[None] | None = None

    def new_process(self) -> None:
        """Forget the holds of the last QEMU."""
        self._stopped_at, self._late_s = None, 0.0

    def vcpus_stopped(self, event: Mapping[str, Any]) -> None:
        """Take QEMU's event STOP."""
        self._stopped_at = _moment_of(event)

    def vcpus_run(self, event: Mapping[str, Any]) -> None:
        """Take QEMU's event RESUME. No STOP comes before the first RESUME of a fork."""
        stopped_at, self._stopped_at = self._stopped_at, None
        if stopped_at is not None:
            self._late_s += max(0.0, _moment_of(event) - stopped_at)
        if self._late_s > _LATE_S:
            self.set_soon()

    def set_soon(self) -> None:
        """Set the clock in a task. A standby machine gets the time when it is requested."""
        machine = self._machine
        if machine.record.standby or machine.state not in (State.RUNNING, State.PAUSED):
            self._late_s = 0.0
        elif self._setting is None or self._setting.done():
            self._setting = machine.own(self._set(), "set the guest's clock")

    async def go_on(self, cont: Callable[[], Awaitable[object]]) -> None:
        """Let the vCPUs run by `cont`. The request to set the clock is in the agent's port by then.

        Raises: as `cont`.
        """
        self._stopped_at = None
        self._setting = setting = self._machine.own(self._set(), "set the guest's clock")
        await asyncio.sleep(0)
        await cont()
        await asyncio.wait({setting}, timeout=_PATIENCE_S)

    async def _set(self) -> None:
        machine, channel = self._machine, self._machine.answering()
        try:
            if channel is None:
                self._tell_later()
                return
            await set_clock(channel, machine.record, timeout_s=_ANSWER_S)
            self._late_s = 0.0
        except BoughError:
            self._tell_later()

    def _tell_later(self) -> None:
        """Have the next hello set the clock."""
        if self._machine.record.identity == "known" and self._machine.state is not State.STOPPED:
            self._machine.change(identity="clock", event=False)
        self._late_s = 0.0


async def follow_host(
    keepers: Callable[[], Iterable[ClockKeeper]],
    *,
    ahead: Callable[[], float] = host_ahead_s,
    every_s: float = _HOST_LOOK_S,
) -> None:
    """Set the clocks of all guests when the host has slept, or its own clock was set. Never returns.

    Args:
        ahead: as `host_ahead_s`.
    """
    ahead_s = ahead()
    while True:
        await asyncio.sleep(every_s)
        before_s, ahead_s = ahead_s, ahead()
        if abs(ahead_s - before_s) > _HOST_STEP_S:
            for keeper in keepers():
                keeper.set_soon()


def _moment_of(event: Mapping[str, Any]) -> float:
    """Return the time of an event in s, by QEMU's own stamp if that makes sense: events may be read late."""
    stamp = event.get("timestamp")
    if isinstance(stamp, dict):
        seconds, micros = stamp.get("seconds"), stamp.get("microseconds")
        if isinstance(seconds, int) and isinstance(micros, int) and abs(seconds - time.time()) < 3600:
            return seconds + micros / 1e6
    return time.time()
