"""Choose the project of a command: by --file, by --project, or by the nearest bough.toml."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bough.cli.service import connect
from bough.errors import NotFound

if TYPE_CHECKING:
    from bough.client.project import Project


def project_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --file and --project, which `with_file` and `existing` take."""
    command = click.option(
        "--project",
        "project",
        metavar="NAME",
        help="The project's name in this home. Default: as in its file.",
    )(command)
    return click.option(
        "--file",
        "file",
        metavar="TOML",
        help="The project's file. Default: bough.toml in this directory, or in the nearest one above.",
    )(command)


def with_file(file: str | None, project: str | None) -> Project:
    """Return the project of a file, to bring it up; a project of the home if there is no file.

    Raises:
        NotFound: neither a file nor a project. InvalidInput, InvalidSpec: the file cannot be read.
    """
    from bough.client.project import find_project
    from bough.client.project_file import find_project_file

    try:
        path = Path(file) if file is not None else find_project_file()
    except NotFound:
        if project is None:
            raise
        return find_project(connect().api, project)
    return connect().project(path.absolute(), name=project)


def existing(file: str | None, project: str | None) -> Project:
    """Return a project of the home. Of a file only the name is read: its variables need not be set.

    Raises:
        NotFound: no such project, or no file. InvalidInput: the file is not TOML.
    """
    from bough.client.project import find_project, read_name
    from bough.client.project_file import find_project_file

    if project is not None:
        return find_project(connect().api, project)
    name = read_name(Path(file) if file is not None else find_project_file())
    try:
        return find_project(connect().api, name)
    except NotFound as error:
        raise NotFound(f"project '{name}' is not up", hint="bough up", kind="project", name=name) from error
