"""The snapshots of projects: project-snapshots/<id>.json, written after all parts."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from bough.errors import Conflict, NameTaken, NotFound
from bough.networks.record import NetworkRecord
from bough.paths import Home
from bough.projects.record import ProjectRecord
from bough.storage import is_unfinished_write, sync_directory, write_atomically

log = logging.getLogger("bough.projects")

_LEAST_PREFIX = 4


class ProjectSnapshot(BaseModel):
    """One moment of all machines of a project.

    Attributes:
        project: the record of the project at that moment.
        machines: role -> id of the machine's snapshot, a part of this one.
        networks: the records of the networks.
        memory: the parts of running machines have memory.
        pause_ms: the longest time in which the vCPUs of a machine did not run; None: no machine ran.
    """

    # A newer bough may have written further fields.
    model_config = ConfigDict(extra="allow", frozen=True)

    version: int = 1
    id: str
    label: str | None = None
    message: str = ""
    created: str
    project: ProjectRecord
    machines: dict[str, str] = Field(default_factory=dict)
    networks: tuple[NetworkRecord, ...] = ()
    memory: bool = True
    pause_ms: float | None = None

    @property
    def name(self) -> str:
        """Return the label, or the id."""
        return self.label or self.id


def new_project_snapshot_id() -> str:
    return secrets.token_hex(6)


class ProjectSnapshotStore:
    """All snapshots of projects.

    Attributes:
        unreadable: id -> error of each record that could not be read.
    """

    def __init__(self, home: Home) -> None:
        self.unreadable: dict[str, str] = {}
        self._home = home
        self._records: dict[str, ProjectSnapshot] = {}

    def open(self) -> None:
        """Read all records."""
        for path in sorted(self._home.project_snapshots.glob("*.json")):
            if is_unfinished_write(path.name):
                continue
            try:
                record = read_project_snapshot(path)
            except (OSError, ValueError) as error:
                # The other snapshots must stay usable.
                log.error("the record of project snapshot %s cannot be read: %s", path.stem, error)
                self.unreadable[path.stem] = str(error)
            else:
                self._records[record.id] = record

    def __iter__(self) -> Iterator[ProjectSnapshot]:
        return iter(sorted(self._records.values(), key=lambda record: record.created))

    def __contains__(self, snapshot_id: object) -> bool:
        """Return whether the snapshot exists, perhaps with an unreadable record."""
        return snapshot_id in self._records or snapshot_id in self.unreadable

    def find(self, reference: str) -> ProjectSnapshot:
        """Return the snapshot with that label, id, or unambiguous start of an id (4 digits or more).

        Raises:
            NotFound: no snapshot of a project matches.
            Conflict: several ids match, or the record is damaged.
        """
        found = [one for one in self if reference in (one.label, one.id)] or [
            one for one in self if len(reference) >= _LEAST_PREFIX and one.id.startswith(reference)
        ]
        if len(found) == 1:
            return found[0]
        if found:
            raise Conflict(
                f"{reference!r} is ambiguous: {len(found)} snapshot ids match", hint="use more characters"
            )
        if reference in self.unreadable:
            raise Conflict(
                f"the record of project snapshot {reference} cannot be read: "
                f"{self.unreadable[reference][:300]}",
                hint=f"repair it by hand, or move it away: {self._home.project_snapshot(reference)}",
            )
        close = get_close_matches(reference, [one.label for one in self if one.label], n=1)
        hint = f"did you mean '{close[0]}'?" if close else "list all snapshots: bough snapshot list"
        raise NotFound(
            f"no snapshot of a project is called {reference[:80]!r}",
            hint=hint,
            kind="project snapshot",
            name=reference[:80],
        )

    def knows(self, reference: str) -> bool:
        try:
            self.find(reference)
        except NotFound:
            return False
        return True

    def check_label(self, label: str | None) -> None:
        """Check that no snapshot of a project has this label. Raises NameTaken."""
        if label is not None and any(label in (one.label, one.id) for one in self):
            raise NameTaken(
                f"a snapshot labelled '{label}' exists already",
                hint=f"choose another label, or delete it: bough snapshot delete {label}",
                name=label,
            )

    def add(self, record: ProjectSnapshot) -> None:
        """Keep a new snapshot. Raises NoSpace, OSError: nothing was made."""
        content = record.model_dump_json(indent=1).encode() + b"\n"
        write_atomically(self._home.project_snapshot(record.id), content)
        self._records[record.id] = record

    def remove(self, record: ProjectSnapshot) -> None:
        """Delete the record, before the parts."""
        path = self._home.project_snapshot(record.id)
        path.unlink(missing_ok=True)
        sync_directory(path.parent)
        self._records.pop(record.id, None)


def read_project_snapshot(path: Path) -> ProjectSnapshot:
    """Read the record. Raises OSError, ValueError: the record is missing, damaged, or another's."""
    record = ProjectSnapshot.model_validate_json(path.read_bytes())
    if record.id != path.stem:
        raise ValueError(f"it belongs to project snapshot {record.id[:80]!r}")
    return record
