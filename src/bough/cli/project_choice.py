"""Choose the project of a command: by --file, by --project, or by the nearest bough.toml."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bough.cli.service import connect
from bough.errors import BoughError, NotFound

if TYPE_CHECKING:
    from bough.client.project import Project

_FILE, _PROJECT = f"{__name__}.file", f"{__name__}.project"


def project_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --file and --project, which `with_file` and `existing` take."""
    command = click.option(
        "--project",
        metavar="NAME",
        help="The project's name in this home. Default: as in its file.",
        callback=keep_project,
    )(command)
    return click.option(
        "--file",
        metavar="TOML",
        help="The project's file. Default: bough.toml in this directory, or in the nearest one above.",
        callback=keep_file,
    )(command)


def keep_project(context: click.Context, _: click.Parameter, value: str | None) -> str | None:
    """Keep the value of --project for `chosen_project`."""
    context.meta[_PROJECT] = value
    return value


def keep_file(context: click.Context, _: click.Parameter, value: str | None) -> str | None:
    """Keep the value of --file for `chosen_project`."""
    context.meta[_FILE] = value
    return value


def chosen_project() -> Project | None:
    """Return the project that --project or --file of the present command names; None: neither is given.

    Raises: as `existing`.
    """
    context = click.get_current_context(silent=True)
    kept = {} if context is None else context.meta
    file, project = kept.get(_FILE), kept.get(_PROJECT)
    return None if file is None and project is None else existing(file, project)


def name_here() -> str | None:
    """Return the name of the project whose file is in this directory, or in the nearest one above."""
    directory = Path.cwd()
    if not any((one / "bough.toml").is_file() for one in (directory, *directory.parents)):
        return None
    from bough.client.project import read_name
    from bough.client.project_file import find_project_file

    try:
        return read_name(find_project_file())
    except BoughError:
        return None


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
