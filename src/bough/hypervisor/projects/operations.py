"""Operations on projects: one at a time for each project."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from bough.errors import Conflict


class ProjectOperations:
    """Refuses a second operation on a project at once. Nothing queues, as for machines."""

    def __init__(self) -> None:
        self._doing: dict[str, str] = {}

    def is_busy(self, name: str) -> bool:
        """Return whether an operation on the project of that name is under way."""
        return name in self._doing

    @contextmanager
    def run(self, name: str, doing: str) -> Iterator[None]:
        """Run an operation on the project of that name, which need not exist yet.

        Raises:
            Conflict: another operation is under way.
        """
        if name in self._doing:
            raise Conflict(
                f"project '{name}' is {self._doing[name]} just now",
                hint=f"try again when that is done: bough ps --project {name}",
                project=name,
            )
        self._doing[name] = doing
        try:
            yield
        finally:
            del self._doing[name]
