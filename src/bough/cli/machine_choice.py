"""Choose the machine or the network of a command: by its name, and by the project of the command.

Each command that takes a machine has `machine_options`. A name is, in this order:

1. with --project or --file: the role of a machine of that project
2. the name or the id of a machine, or a role that only one project has
3. a role of the project whose bough.toml is in this directory, or in the nearest one above
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click

from bough.cli.project_choice import chosen_project, keep_file, keep_project, name_here
from bough.cli.service import connect
from bough.errors import BoughError, Conflict

if TYPE_CHECKING:
    from bough.client.machine import Machine


def machine_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --file and --project. The functions of this module read both; the command itself does not."""
    # Names of their own: some commands have an argument FILE.
    command = click.option(
        "--project",
        "of_project",
        metavar="PROJECT",
        help="The machine's project. A name is a role of that project.",
        callback=keep_project,
        expose_value=False,
    )(command)
    return click.option(
        "--file",
        "of_file",
        metavar="TOML",
        help="The machine's project, by its file.",
        callback=keep_file,
        expose_value=False,
    )(command)


def machine_named(name: str) -> Machine:
    """Return the machine of a command. The command's first call of the machine raises NotFound."""
    return connect().machine_at(machine_here(name))


def machine_here(name: str) -> str:
    """Return a reference to the machine of a command.

    Raises:
        NotFound: --project or --file names no project, or the project has no such machine.
    """
    project = chosen_project()
    if project is not None:
        project[name]  # an error here tells the project's machines
        return f"{name}.{project.name}"
    return _prefer_here(name, lambda reference: connect().machine(reference))


def machines_on(network: str | None, names: Iterable[str]) -> list[str]:
    """Return references to machines on a network. A network like "back.shop" says the project already."""
    if network is not None and "." in network and chosen_project() is None:
        return list(names)
    return [machine_here(name) for name in names]


def network_here(name: str) -> str:
    """Return a reference to the network of a command. Raises NotFound, as `machine_here`."""
    project = chosen_project()
    if project is not None:
        project.network(name)
        return f"{name}.{project.name}"
    return _prefer_here(name, lambda reference: connect().network(reference))


def _prefer_here(name: str, find: Callable[[str], object]) -> str:
    """Return "name.project" for an ambiguous name that the project of this directory has, else the name."""
    here = None if "." in name else name_here()
    if here is None:
        return name
    try:
        find(name)
    except Conflict:
        inside = f"{name}.{here}"
        with suppress(BoughError):  # the command itself tells what is wrong
            find(inside)
            return inside
    except BoughError:
        pass
    return name
