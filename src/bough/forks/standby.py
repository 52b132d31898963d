"""Standby machines: waiting forks that have answered and have an identity.

`run` of a booted image or `fork` of a snapshot takes a standby machine. The rest of the start is `cont` and
setting the clock. By then QEMU has translated the necessary code. bough keeps standby machines only on
request. standby.json holds the requests. All standby machines are deleted when the host is short of memory,
and when the service ends.

The first standby machine for a run is running: the guest is idle, and needs no new settings. A standby
machine of a snapshot is paused. Otherwise its programs would continue, but a fork must start from the state
of the snapshot.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

from bough.errors import BoughError
from bough.forks.level import RULES, Level
from bough.forks.pool import Item, Pool
from bough.machines.machine import Machine
from bough.storage import write_json
from bough.tasks import end_tasks

log = logging.getLogger("bough.forks")

MOST = RULES[Level.STANDBY].most
_LOOK_EVERY_S = 15.0
#: Delay after a user has taken a machine: making the next one would slow the user's work down.
_MAKE_AFTER_S = 1.0

#: The source of a standby machine: {"spec": ...} for runs of the spec, or {"snapshot": id} for forks of the
#: snapshot.
StandbySource = dict[str, Any]
Make = Callable[[StandbySource], Awaitable[Machine]]
Discard = Callable[[Machine], Awaitable[None]]
Wake = Callable[[Machine], Awaitable[None]]


class StandbyMachines:
    """Makes the standby machines that were requested. The machines wait in the pool.

    Args:
        settings: file of the requests.
        make: makes a standby machine.
        wake: lets a standby machine run.
        discard: deletes a standby machine.
    """

    def __init__(self, settings: Path, pool: Pool, make: Make, wake: Wake, discard: Discard) -> None:
        self._settings = settings
        self._pool = pool
        self._make = make
        self._wake = wake
        self._discard = discard
        self._wanted: list[dict[str, Any]] = []
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
        """Return a fitting standby machine, if any, and make the next standby machine.

        The caller owns the machine from now on.
        """
        item = next((item for item in self._items() if fits(item.content)), None)
        if item is None:
            return None
        self._pool.take(item)
        self._changed.set()
        machine: Machine = item.content
        return machine

    def count(self, fits: Callable[[Machine], bool]) -> int:
        """Return the number of standby machines that fit."""
        return sum(fits(item.content) for item in self._items())

    def describe(self) -> list[dict[str, Any]]:
        return [
            {
                **entry,
                "ready": len(self._items(_name(entry))),
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

    def _items(self, request: str | None = None) -> list[Item]:
        """Return the standby machines of a request or of all requests: running machines first, then the
        oldest.
        """
        items = [*self._pool.items(Level.RUNNING), *self._pool.items(Level.STANDBY)]
        return [item for item in items if request is None or item.request == request]

    async def _look(self) -> None:
        wanted = {_name(entry): entry for entry in self._wanted}
        for item in self._items():
            if item.request not in wanted:
                self._pool.drop(item)
        for request, entry in wanted.items():
            for surplus in self._items(request)[entry["count"] :]:
                self._pool.drop(surplus)
            try:
                await self._fill(request, _of(entry), entry["count"])
            except BoughError as error:
                log.warning("no standby machine of %s: %s", request, error)
                self._trouble[request] = error.message
            if self._changed.is_set():
                return  # the requests may have changed

    async def _fill(self, request: str, source: StandbySource, count: int) -> None:
        """Make the missing machines of a request. Raises BoughError."""
        await self._wake_first(request, source)
        while len(self._items(request)) < count and not self._pool.is_short():
            machine = await self._make(source)
            snapshot_id = machine.record.snapshot or ""
            item = Item(Level.STANDBY, snapshot_id, machine, partial(self._discard, machine), request)
            self._pool.put(item)
            self._trouble.pop(request, None)
            await self._wake_first(request, source)
            if self._changed.is_set():
                return

    async def _wake_first(self, request: str, source: StandbySource) -> None:
        """Let the first standby machine for runs idle. For this short time no user can take the machine.

        Raises BoughError: the machine was discarded.
        """
        first = next(iter(self._items(request)), None)
        if "spec" not in source or first is None or first.level is Level.RUNNING:
            return
        self._pool.take(first)
        try:
            await self._wake(first.content)
        except BoughError:
            await self._discard(first.content)
            raise
        except BaseException:
            self._pool.put(first)
            raise
        first.level = Level.RUNNING
        self._pool.put(first)


def _of(entry: dict[str, Any]) -> StandbySource:
    return {"spec": dict(entry["spec"])} if "spec" in entry else {"snapshot": str(entry["snapshot"])}


def _name(entry: dict[str, Any]) -> str:
    return json.dumps(_of(entry), sort_keys=True)
