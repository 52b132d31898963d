"""The records of projects."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from difflib import get_close_matches
from typing import Any

from bough.errors import Conflict, NotFound
from bough.paths import Home
from bough.projects.record import ProjectRecord
from bough.storage import is_unfinished_write, sync_directory

log = logging.getLogger("bough.projects")


class ProjectStore:
    """All projects of a home.

    Attributes:
        unreadable: id -> error of each record that could not be read.
    """

    def __init__(self, home: Home) -> None:
        self.unreadable: dict[str, str] = {}
        self._home = home
        self._records: dict[str, ProjectRecord] = {}

    def open(self) -> None:
        """Read all records."""
        for path in sorted(self._home.projects.glob("*.json")):
            if is_unfinished_write(path.name):
                continue
            try:
                record = ProjectRecord.read(path)
            except (OSError, ValueError) as error:
                # A damaged record must not keep other projects from being used.
                log.error("the record of project %s cannot be read: %s", path.stem, error)
                self.unreadable[path.stem] = str(error)
            else:
                self._records[record.id] = record

    def __iter__(self) -> Iterator[ProjectRecord]:
        return iter(sorted(self._records.values(), key=lambda record: record.created))

    def names(self) -> Collection[str]:
        return [record.name for record in self]

    def get(self, project_id: str | None) -> ProjectRecord | None:
        return self._records.get(project_id) if project_id is not None else None

    def named(self, name: str) -> ProjectRecord | None:
        """Return the project with that name or id, or None."""
        return next((record for record in self if name in (record.name, record.id)), None)

    def find(self, reference: str) -> ProjectRecord:
        """Return the project with that name or id.

        Raises:
            NotFound: no project matches. Conflict: the project's record is damaged.
        """
        record = self.named(reference)
        if record is not None:
            return record
        if reference in self.unreadable:
            raise Conflict(
                f"the record of project {reference} cannot be read: {self.unreadable[reference][:300]}",
                hint=f"repair it by hand, or move it away: {self._home.project(reference)}",
            )
        close = get_close_matches(reference, self.names(), n=1)
        hint = f"did you mean '{close[0]}'?" if close else "bough ps --all shows all projects"
        raise NotFound(
            f"no project is called {reference[:80]!r}", hint=hint, kind="project", name=reference[:80]
        )

    def add(self, record: ProjectRecord) -> None:
        """Keep a new project. Raises NoSpace, OSError: nothing was made."""
        record.write(self._home.project(record.id))
        self._records[record.id] = record

    def update(self, record: ProjectRecord, **fields: Any) -> ProjectRecord:
        """Change fields of a project, on disk and then in memory. Return the new record.

        Raises NoSpace, OSError: nothing is changed.
        """
        current = self._records.get(record.id, record)
        changed = current.model_copy(update=fields)
        if changed != current:
            self.add(changed)
        return changed

    def remove(self, record: ProjectRecord) -> None:
        """Delete the record of a project that has no machines and no networks any more."""
        path = self._home.project(record.id)
        path.unlink(missing_ok=True)
        sync_directory(path.parent)
        self._records.pop(record.id, None)

    def loopbacks(self) -> Collection[str]:
        """Return the loopback addresses of all projects."""
        return {record.loopback for record in self._records.values()}
