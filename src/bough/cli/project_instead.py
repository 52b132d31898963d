"""Commands that take the name of a machine or of a project."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bough.cli.service import connect
from bough.errors import NotFound

if TYPE_CHECKING:
    from bough.client.project import Project, ProjectSnapshot


def project_instead(name: str, error: NotFound) -> Project:
    """Return the project of that name.

    Raises the error about the missing machine: there is no such project either.
    """
    if name not in {project.name for project in connect().projects()}:
        raise error
    return connect().project_at(name)


def project_snapshot_instead(name: str, error: NotFound) -> ProjectSnapshot:
    """Return the snapshot of a project with that label or id. Raises the error: there is none."""
    try:
        return connect().project_snapshot(name)
    except NotFound:
        raise error from None
