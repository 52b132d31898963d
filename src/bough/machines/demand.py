"""When a user last requested work for the host's processors: a fork, or a command in a guest.

Background work starts after a time without such a request, and yields at the next request.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator


class Demand:
    """The requests to one service."""

    def __init__(self) -> None:
        self._held = 0
        self._last = -math.inf
        self._listeners: list[Callable[[], None]] = []

    def listen(self, listener: Callable[[], None]) -> None:
        """Call `listener` at each request."""
        self._listeners.append(listener)

    def notice(self) -> None:
        """Note a request."""
        self._last = time.monotonic()
        for listener in self._listeners:
            listener()

    @contextlib.contextmanager
    def holding(self) -> Iterator[None]:
        """Note a request that lasts until the block ends."""
        self.notice()
        self._held += 1
        try:
            yield
        finally:
            self._held -= 1
            self._last = time.monotonic()

    def is_over_for(self, pause_s: float) -> bool:
        """Return whether the last request ended at least `pause_s` ago."""
        return not self._held and time.monotonic() - self._last >= pause_s


#: A process runs one service.
DEMAND = Demand()
