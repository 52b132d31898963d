"""Whether a user waits for a pre-warm: from the start, from some moment on, or never."""

from __future__ import annotations

from collections.abc import Callable


class Urgency:
    def __init__(self, is_set: bool) -> None:
        self.is_set = is_set
        self._listeners: list[Callable[[], None]] = []

    def set(self) -> None:
        if not self.is_set:
            self.is_set = True
            for listener in self._listeners:
                listener()

    def listen(self, listener: Callable[[], None]) -> None:
        """Call `listener` at the moment when a user begins to wait."""
        self._listeners.append(listener)
