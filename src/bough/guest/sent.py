"""Input sent to a command, kept until the guest has passed the input on: another agent may need the bytes
again.
"""

from __future__ import annotations

from collections import deque

from bough.errors import ProtocolError
from bough.guest import wire


class SentInput:
    """Sent input, bounded by the guest's credit. Credited input was passed on, and is dropped."""

    def __init__(self) -> None:
        self._parts: deque[bytes] = deque()
        #: Number of bytes before the first part.
        self._before = 0
        self._credit = 0

    def add(self, part: bytes) -> None:
        self._parts.append(part)

    def credited(self, count: int) -> None:
        self._credit += count
        while self._parts and self._credit >= len(self._parts[0]) + wire.FRAME_COST:
            part = self._parts.popleft()
            self._credit -= len(part) + wire.FRAME_COST
            self._before += len(part)

    def take_from(self, written: int) -> list[bytes]:
        """Return the input to send again to an agent, after `written` bytes that were passed on.

        Raises:
            ProtocolError: `written` contradicts the bytes sent and credited.
        """
        skip = written - self._before
        rest: list[bytes] = []
        for part in self._parts:
            if skip < len(part):
                rest.append(part[max(skip, 0) :])
            skip -= len(part)
        if written < self._before or skip > 0:
            raise ProtocolError("an agent that has passed on input that was not sent")
        self._parts.clear()
        self._before = written
        self._credit = 0
        return rest
