"""The connection to the service, and parameter types that complete names on the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from bough.errors import BoughError

if TYPE_CHECKING:
    from bough.client.hypervisor import Hypervisor


def connect(*, start: bool = True) -> Hypervisor:
    """Return the hypervisor of BOUGH_HOME; start the service if no service runs."""
    import warnings

    from bough.client.hypervisor import connect

    warnings.showwarning = _show_warning  # type: ignore[assignment]
    return connect(start=start)


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
TIMEOUT_HELP = "Longest wait for the guest. Default: as long as the guest makes progress."
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
