"""Spares: machines that have gone on from a snapshot, have answered, know who they are, and stand still.

`run`, of a booted image, or `fork`, of a snapshot, takes one and lets it go on: what is left of a start is
`cont` and a look at the clock. Its emulated processor has translated what it needs by then. None is kept
unless asked for; what is asked for is in spares.json. All are given up while the host is short of memory,
and when the service ends.

The next one that a run is to take is awake: it idles, and there is nothing that it has to be told. A spare of
a snapshot is not: what runs in it would go on, and whoever forks it wants it as it was.
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
from bough.machines.machine import Machine
from bough.storage import write_json
from bough.tasks import end_tasks

log = logging.getLogger("bough.spares")

MOST = 32
#: Below this share of the host's memory that is still to be had, no spare is kept.
_LEAST_MEMORY = 0.1
_LOOK_EVERY_S = 15.0
#: Whoever took one is busy with it: making the next would be in the way.
_MAKE_AFTER_S = 1.0

#: What a spare is of: {"spec": ...}, for runs of that spec, or {"snapshot": id}, for its forks.
Of = dict[str, Any]
Make = Callable[[Of], Awaitable[Machine]]
Discard = Callable[[Machine], Awaitable[None]]
Rouse = Callable[[Of, Machine], Awaitable[None]]


class Spares:
    """Made with three ways of the hypervisor: to make a spare, to have it stand by awake, where that may be,
    and to be rid of it."""

    def __init__(self, settings: Path, make: Make, rouse: Rouse, discard: Discard) -> None:
        self._settings = settings
        self._make = make
        self._rouse = rouse
        self._discard = discard
        self._wanted: list[dict[str, Any]] = []
        #: In the order of `_wanted`.
        self._kept: dict[str, list[Machine]] = {}
        self._trouble: dict[str, str] = {}
        self._changed = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None

    def open(self) -> None:
        """Begin to make what was asked for before."""
        with contextlib.suppress(FileNotFoundError):
            try:
                self._wanted = [
                    {**_of(entry), "count": int(entry["count"])}
                    for entry in json.loads(self._settings.read_bytes())
                ]
            except (ValueError, TypeError, KeyError) as error:
                log.error("%s cannot be read, no spares are made: %s", self._settings, error)
        self._start()

    async def close(self) -> None:
        if self._keeper is not None:
            await end_tasks(self._keeper)
        await self._give_up()

    def want(self, of: Of, count: int) -> None:
        """Keep so many from now on; they are made in the background. Written down."""
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
        """One that fits is the caller's from now on, and the next is made."""
        for kept in self._kept.values():
            for machine in kept:
                if fits(machine):
                    kept.remove(machine)
                    self._changed.set()
                    return machine
        return None

    def count(self, fits: Callable[[Machine], bool]) -> int:
        """How many `take` would find, one after the other."""
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
            self._keeper = asyncio.create_task(self._keep(), name="keep spares")

    async def _keep(self) -> None:
        while True:
            self._changed.clear()
            try:
                await self._look()
            except Exception:
                log.exception("looking after the spares failed")
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
            await self._rouse_first(kept, _of(entry))
            while len(kept) < entry["count"] and not is_memory_short():
                try:
                    kept.append(await self._make_next(kept, _of(entry)))
                    self._trouble.pop(name, None)
                except BoughError as error:
                    log.warning("no spare of %s: %s", name, error)
                    self._trouble[name] = error.message
                    break
                if self._changed.is_set():
                    return  # what is wanted may have changed

    async def _make_next(self, kept: list[Machine], of: Of) -> Machine:
        machine = await self._make(of)
        if not kept:
            try:
                await self._rouse(of, machine)
            except BaseException:
                await asyncio.shield(self._discard(machine))
                raise
        return machine

    async def _rouse_first(self, kept: list[Machine], of: Of) -> None:
        """It is nobody's to take meanwhile, which is a moment."""
        if not kept:
            return
        first = kept.pop(0)
        try:
            await self._rouse(of, first)
        except BoughError as error:
            log.warning("a machine that stood by was of no use: %s", error)
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


def is_memory_short() -> bool:
    """By the kernel's own guess of what can still be had (proc(5), MemAvailable)."""
    found = {}
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name in ("MemTotal", "MemAvailable"):
            found[name] = int(value.split()[0])
    return found["MemAvailable"] < _LEAST_MEMORY * found["MemTotal"]


def _of(entry: dict[str, Any]) -> Of:
    return {"spec": dict(entry["spec"])} if "spec" in entry else {"snapshot": str(entry["snapshot"])}


def _name(entry: dict[str, Any]) -> str:
    return json.dumps(_of(entry), sort_keys=True)
