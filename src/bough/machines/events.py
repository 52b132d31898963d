"""Events of machines: a bounded history and a live stream."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from dataclasses import asdict, dataclass
from typing import Any

from bough.machines.record import now

PAST_EVENTS = 2000
QUEUE_EVENTS = 1000


@dataclass(frozen=True)
class Event:
    time: str
    kind: str
    machine: str
    name: str
    detail: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Events:
    def __init__(self) -> None:
        self._past: deque[Event] = deque(maxlen=PAST_EVENTS)
        self._watchers: set[asyncio.Queue[Event]] = set()

    def emit(self, kind: str, *, machine: str, name: str, detail: str = "") -> None:
        event = Event(now(), kind, machine, name, detail)
        self._past.append(event)
        for queue in self._watchers:
            if not queue.full():  # only a watcher that does not read loses events
                queue.put_nowait(event)

    async def watch(self, since: str | None = None) -> AsyncGenerator[Event, None]:
        """Yield the events after `since` (a time as in Event.time; None: from now on), then each
        new event.
        """
        queue: asyncio.Queue[Event] = asyncio.Queue(QUEUE_EVENTS)
        past = [event for event in self._past if since is not None and event.time > since]
        self._watchers.add(queue)
        try:
            for event in past:
                yield event
            while True:
                yield await queue.get()
        finally:
            self._watchers.discard(queue)
