"""When a user last wanted something that takes the host's processors: a fork, a command in a guest.

Work that nobody waits for begins in a pause of that, and gives way when the pause ends.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator


class Demand:
    """Of one service."""

    def __init__(self) -> None:
        self._held = 0
        self._last = -math.inf
        self._listeners: list[Callable[[], None]] = []

    def listen(self, listener: Callable[[], None]) -> None:
        """Call `listener` each time that a user wants something."""
        self._listeners.append(listener)

    def notice(self) -> None:
        """A user wants something now."""
        self._last = time.monotonic()
        for listener in self._listeners:
            listener()

    @contextlib.contextmanager
    def holding(self) -> Iterator[None]:
        """A user waits until the block ends."""
        self.notice()
        self._held += 1
        try:
            yield
        finally:
            self._held -= 1
            self._last = time.monotonic()

    def is_over_for(self, pause_s: float) -> bool:
        """Whether no user has wanted anything for so long."""
        return not self._held and time.monotonic() - self._last >= pause_s


#: A process is one service.
DEMAND = Demand()
