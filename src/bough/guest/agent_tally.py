"""The tally: shared memory of all agents of a guest, with a count for each stream of a kept command."""

from __future__ import annotations

import os
from struct import Struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mmap import mmap

#: Number of commands that the tally has room for.
SLOTS = 256
SLOT_BYTES = 32
_NUMBER = Struct("<Q")


def create_tally() -> int:
    """Return a descriptor of the shared memory."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("bough-tally")
    else:  # Python 3.7
        fd = os.open("/run", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    os.ftruncate(fd, SLOTS * SLOT_BYTES)
    return fd


class Mark:
    """Number of bytes passed on by a stream. The number in memory is odd while a change is under way."""

    def __init__(self, memory: mmap, at: int) -> None:
        self._memory = memory
        self._at = at

    def touch(self, count: int) -> None:
        _NUMBER.pack_into(self._memory, self._at, 2 * count + 1)

    def set(self, count: int) -> None:
        _NUMBER.pack_into(self._memory, self._at, 2 * count)

    def read(self) -> int | None:
        """Return the number; None: the agent was killed in the middle of a change."""
        (value,) = _NUMBER.unpack_from(self._memory, self._at)
        return None if value & 1 else value >> 1
