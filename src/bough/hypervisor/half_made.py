"""Work below incoming/: files of a running operation are not leftovers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class HalfMade:
    """Counts the operations that write below incoming/."""

    def __init__(self) -> None:
        self._count = 0

    @property
    def is_busy(self) -> bool:
        return self._count > 0

    @contextmanager
    def working(self) -> Iterator[None]:
        """Mark files in incoming/ as in use until the block ends."""
        self._count += 1
        try:
            yield
        finally:
            self._count -= 1
