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


class Trial:
    """The start of a fork that tries out a process image; see bough.machines.saved_state.Prewarm."""

    def __init__(self, urgency: Urgency) -> None:
        self._urgency = urgency

    @property
    def is_urgent(self) -> bool:
        return self._urgency.is_set

    async def state_loaded(self, pid: int | None) -> None:
        """Do nothing: the image has the state."""
