"""Standby machines: forks that have answered, have their own identity, and wait to be used.

`run` of a booted image or `fork` of a snapshot takes a standby machine. The rest of the start is `cont` and
setting the clock. By then QEMU has translated the necessary code. bough keeps standby machines only on
request. spares.json holds the requests. All standby machines are deleted when the host is short of memory,
and when the service ends.

The first standby machine for a run is awake: the guest runs and is idle, and needs no new settings. A standby
machine of a snapshot is paused. Otherwise its programs would continue, but a fork must start from the state
of the snapshot.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from bough.errors import BoughError
from bough.forks.host_memory import is_memory_short
from bough.machines.machine import Machine
from bough.storage import write_json
from bough.tasks import end_tasks

log = logging.getLogger("bough.forks")

MOST = 32
_LOOK_EVERY_S = 15.0
#: Delay after a user has taken a machine: making the next one would slow the user's work down.
_MAKE_AFTER_S = 1.0

#: The source of a standby machine: {"spec": ...} for runs of that spec, or {"snapshot": id} for its forks.
StandbySource = dict[str, Any]
Make = Callable[[StandbySource], Awaitable[Machine]]
Discard = Callable[[Machine], Awaitable[None]]
Wake = Callable[[StandbySource, Machine], Awaitable[None]]


class StandbyMachines:
    """Keeps the standby machines that were requested.

    Args:
        settings: file of the requests.
        make: makes a standby machine.
        wake: resumes a standby machine, if it may wait awake.
        discard: deletes a standby machine.
    """

    def __init__(self, settings: Path, make: Make, wake: Wake, discard: Discard) -> None:
        self._settings = settings
        self._make = make
        self._wake = wake
        self._discard = discard
        self._wanted: list[dict[str, Any]] = []
        #: In the order of `_wanted`.
        self._kept: dict[str, list[Machine]] = {}
        self._trouble: dict[str, str] = {}
        self._changed = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None

    def open(self) -> None:
        """Begin to make the machines of earlier requests."""
        with contextlib.suppress(FileNotFoundError):
            try:
                self._wanted = [
                    {**_of(entry), "count": int(entry["count"])}
                    for entry in json.loads(self._settings.read_bytes())
                ]
            except (ValueError, TypeError, KeyError) as error:
                log.error("%s cannot be read, no standby machines are made: %s", self._settings, error)
        self._start()

    async def close(self) -> None:
        if self._keeper is not None:
            await end_tasks(self._keeper)
        await self._give_up()

    def want(self, of: StandbySource, count: int) -> None:
        """Save a request for `count` standby machines, which are made in the background."""
        left = [entry for entry in self._wanted if _of(entry) != of]
        if not count and left == self._wanted:
            return
        wanted = [*left, {**of, "count": count}] if count else left
        write_json(self._settings, wanted)
        self._wanted = wanted
        self._trouble.pop(_name(of), None)
        self._start()
        self._changed.set()

    def take(self, fits: Callable[[Machine], bool]) -> Machine | None:
        """Return a standby machine that fits, if any, and make the next one.

        The caller owns the machine from now on.
        """
        for kept in self._kept.values():
            for machine in kept:
                if fits(machine):
                    kept.remove(machine)
                    self._changed.set()
                    return machine
        return None

    def count(self, fits: Callable[[Machine], bool]) -> int:
        """Return the number of standby machines that fit."""
        return sum(fits(machine) for kept in self._kept.values() for machine in kept)

    def describe(self) -> list[dict[str, Any]]:
        return [
            {
                **entry,
                "ready": len(self._kept.get(_name(entry), ())),
                "trouble": self._trouble.get(_name(entry)),
            }
            for entry in self._wanted
        ]

    def _start(self) -> None:
        if self._wanted and self._keeper is None:
            self._keeper = asyncio.create_task(self._keep(), name="keep standby machines")

    async def _keep(self) -> None:
        while True:
            self._changed.clear()
            try:
                await self._look()
            except Exception:
                log.exception("making standby machines failed")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_EVERY_S):
                    await self._changed.wait()
                await asyncio.sleep(_MAKE_AFTER_S)

    async def _look(self) -> None:
        if is_memory_short():
            await self._give_up()
            return
        wanted = {_name(entry): entry for entry in self._wanted}
        for name in [name for name in self._kept if name not in wanted]:
            await self._give_up(name)
        for name, entry in wanted.items():
            kept = self._kept.setdefault(name, [])
            while len(kept) > entry["count"]:
                await self._discard(kept.pop())
            await self._wake_first(kept, _of(entry))
            while len(kept) < entry["count"] and not is_memory_short():
                try:
                    kept.append(await self._make_next(kept, _of(entry)))
                    self._trouble.pop(name, None)
                except BoughError as error:
                    log.warning("no standby machine of %s: %s", name, error)
                    self._trouble[name] = error.message
                    break
                if self._changed.is_set():
                    return  # the requests may have changed

    async def _make_next(self, kept: list[Machine], of: StandbySource) -> Machine:
        machine = await self._make(of)
        if not kept:
            try:
                await self._wake(of, machine)
            except BaseException:
                await asyncio.shield(self._discard(machine))
                raise
        return machine

    async def _wake_first(self, kept: list[Machine], of: StandbySource) -> None:
        """Wake the first standby machine. For this short time no user can take the machine."""
        if not kept:
            return
        first = kept.pop(0)
        try:
            await self._wake(of, first)
        except BoughError as error:
            log.warning("a standby machine could not be woken: %s", error)
            await self._discard(first)
        except BaseException:
            kept.insert(0, first)
            raise
        else:
            kept.insert(0, first)

    async def _give_up(self, only: str | None = None) -> None:
        for name in list(self._kept) if only is None else [only]:
            for machine in self._kept.pop(name, []):
                with contextlib.suppress(BoughError):
                    await self._discard(machine)


def _of(entry: dict[str, Any]) -> StandbySource:
    return {"spec": dict(entry["spec"])} if "spec" in entry else {"snapshot": str(entry["snapshot"])}


def _name(entry: dict[str, Any]) -> str:
    return json.dumps(_of(entry), sort_keys=True)
