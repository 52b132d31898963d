"""spares: machines that stand by for the next run."""

from __future__ import annotations

from typing import Any

import click

from bough.cli.output import show_json, show_table
from bough.cli.service import IMAGE, connect, json_option
from bough.cli.spec import spec_of, spec_options


@click.command()
@click.option("--count", type=click.IntRange(0), help="How many to keep; 0 keeps none any more.")
@spec_options
@click.argument("image", type=IMAGE, required=False)
@json_option
def spares(image: str | None, count: int | None, as_json: bool, force: bool, **given: Any) -> None:
    """Keep machines of IMAGE that stand still and go on when the next `bough run` asks for such a one.

    A run takes one where its machine is of the same kind and it asks for no users, files or commands. They
    are made in the background and given up while memory is short. Without IMAGE: tell what is kept.
    """
    service = connect()
    if image is None:
        if count is not None:
            raise click.UsageError("which image? bough spares IMAGE --count N")
        kept = service.get("/spares")
    else:
        kept = service.call(
            "PUT", "/spares", {"spec": spec_of(image, given), "count": 1 if count is None else count}
        )
    if as_json:
        show_json(kept)
        return
    rows = [
        [
            entry["spec"]["image"],
            f"{entry['ready']} of {entry['count']}",
            _settings(entry),
            entry["trouble"] or "",
        ]
        for entry in kept
    ]
    show_table(rows, ["IMAGE", "READY", "SETTINGS", "TROUBLE"])


def _settings(entry: dict[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in entry["spec"].items() if name != "image") or "-"
