"""Options and output of all commands that make a fault."""

from __future__ import annotations

from typing import Any

import click

from bough.cli.output import show_json
from bough.cli.service import DURATION


class Percent(click.ParamType):  # type: ignore[type-arg]  # generic from 8.2 on
    """A percentage like 10% or 0.5."""

    name = "percent"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            return float(str(value).removesuffix("%"))
        except ValueError:
            self.fail(f"expected a percentage like 10%, got {str(value)[:40]!r}", param, ctx)


class Rate(click.ParamType):  # type: ignore[type-arg]
    """Bits per second, like 1mbit."""

    name = "rate"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        from bough.units import parse_rate

        try:
            return parse_rate(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class Size(click.ParamType):  # type: ignore[type-arg]
    """Bytes, like 256MiB."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        from bough.units import parse_size

        try:
            return parse_size(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class SignedDuration(click.ParamType):  # type: ignore[type-arg]
    """A time like +2h or -7d, in seconds."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        from bough.units import parse_duration

        text = str(value)
        try:
            seconds = parse_duration(text.lstrip("+-"))
        except ValueError as error:
            self.fail(str(error), param, ctx)
        return -seconds if text.startswith("-") else seconds


class Moment(click.ParamType):  # type: ignore[type-arg]
    """A time like 2030-01-01T12:00Z, as Unix time."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        from datetime import UTC, datetime

        try:
            found = datetime.fromisoformat(str(value))
        except ValueError:
            self.fail(f"expected a time like 2030-01-01T12:00Z, got {str(value)[:40]!r}", param, ctx)
        return (found if found.tzinfo is not None else found.replace(tzinfo=UTC)).timestamp()


PERCENT, RATE, SIZE = Percent(), Rate(), Size()
SIGNED_DURATION, MOMENT = SignedDuration(), Moment()
for_option = click.option("--for", "for_s", type=DURATION, help="Heal after this time. Default: never.")
seed_option = click.option("--seed", type=int, help="Repeat the random choices of an earlier fault.")


def show_fault(found: dict[str, Any], as_json: bool) -> None:
    """Print the id of a new fault, and on standard error what the fault does."""
    if as_json:
        show_json(found)
        return
    seed = "" if found["seed"] is None else f" (seed {found['seed']})"
    click.echo(f"{found['summary']}{seed}", err=True)
    print(found["id"])
