"""Work that writes below incoming/: as long as it runs, files there are not leftovers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class HalfMade:
    """Counts the operations that are creating something."""

    def __init__(self) -> None:
        self._count = 0

    @property
    def is_busy(self) -> bool:
        return self._count > 0

    @contextmanager
    def working(self) -> Iterator[None]:
        """Files in incoming/ belong to this block until it ends."""
        self._count += 1
        try:
            yield
        finally:
            self._count -= 1
