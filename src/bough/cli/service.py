"""The connection to the service, and parameter types that complete names on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bough.errors import BoughError, Conflict

if TYPE_CHECKING:
    from bough.client.hypervisor import Hypervisor
    from bough.client.machine import Machine


def connect(*, start: bool = True) -> Hypervisor:
    """Return the hypervisor of BOUGH_HOME; start the service if no service runs."""
    import warnings

    from bough.client.hypervisor import connect

    warnings.showwarning = _show_warning  # type: ignore[assignment]
    return connect(start=start)


def machine_named(name: str) -> Machine:
    """Return the machine of a command. The command's first call of the machine raises NotFound."""
    return connect().machine_at(machine_here(name))


def machine_here(name: str, project: str | None = None) -> str:
    """Return a reference to a machine: of `project` if given. If several projects have the role `name`, the
    project of this directory counts.
    """
    if project is not None:
        return f"{name}.{project}"
    project = None if "." in name else _project_here()
    if project is not None:
        try:
            connect().machine(name)
        except Conflict:
            return f"{name}.{project}"
        except BoughError:
            pass  # the command itself tells it
    return name


def _project_here() -> str | None:
    """Return the name of the project whose file is in this directory or in the nearest one above."""
    directory = Path.cwd()
    if not any((one / "bough.toml").is_file() for one in (directory, *directory.parents)):
        return None
    from bough.client.project import read_name
    from bough.client.project_file import find_project_file

    try:
        return read_name(find_project_file())
    except BoughError:
        return None


def _show_warning(message: Warning | str, *_: Any) -> None:
    click.echo(f"warning: {message}", err=True)


class MachineName(click.ParamType):  # type: ignore[type-arg]  # generic from 8.2 on
    """A machine's name, id, or the beginning of the id."""

    name = "name"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
        from click.shell_completion import CompletionItem

        try:
            machines = connect(start=False).list_machines()
        except BoughError:
            return []
        return [CompletionItem(m.name, help=m.state) for m in machines if m.name.startswith(incomplete)]


class ImageName(click.ParamType):  # type: ignore[type-arg]
    """An image's label or digest."""

    name = "image"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
        from click.shell_completion import CompletionItem

        try:
            images = connect(start=False).images()
        except BoughError:
            return []
        return [CompletionItem(label) for i in images for label in i.labels if label.startswith(incomplete)]


class Duration(click.ParamType):  # type: ignore[type-arg]
    """A time like 30s or 2m, converted to seconds."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        from bough.units import parse_duration

        try:
            return parse_duration(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


NAME = MachineName()
IMAGE = ImageName()
DURATION = Duration()
project_option = click.option(
    "--project", metavar="PROJECT", help="The project of the machine, whose role is NAME."
)
TIMEOUT_HELP = "Longest wait for the guest. Default: as long as the guest makes progress."
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
