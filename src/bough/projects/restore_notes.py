"""Notes about restores of projects that are under way: projects/<id>.restore, with the snapshot's id.

A note is written before the first machine is changed, and removed after the last. So a note that a service
finds at its start tells of a restore that an outage has interrupted. The removal needs no space on the disk.
"""

from __future__ import annotations

from bough.paths import Home
from bough.storage import sync_directory, write_atomically


class RestoreNotes:
    def __init__(self, home: Home) -> None:
        self._home = home

    def write(self, project_id: str, snapshot_id: str) -> None:
        """Note that a restore begins. Raises NoSpace, OSError: nothing was written."""
        write_atomically(self._home.project_restore(project_id), snapshot_id.encode())

    def remove(self, project_id: str) -> None:
        """Note that a restore has ended, or will not be completed."""
        self._home.project_restore(project_id).unlink(missing_ok=True)
        sync_directory(self._home.projects)

    def read(self, project_id: str) -> str | None:
        """Return the id of the snapshot to which an interrupted restore leads; None: none was interrupted."""
        try:
            return self._home.project_restore(project_id).read_text(errors="replace")[:64]
        except OSError:
            return None

    def sweep(self) -> None:
        """Remove the notes of deleted projects."""
        for note in self._home.projects.glob("*.restore"):
            if not self._home.project(note.stem).exists():
                note.unlink(missing_ok=True)
