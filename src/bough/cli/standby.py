"""The command standby: standby machines for the next run or fork."""

from __future__ import annotations

from typing import Any

import click

from bough.cli.help_sections import SectionedCommand
from bough.cli.output import show_json, show_table
from bough.cli.service import IMAGE, connect, json_option
from bough.cli.spec import spec_of, spec_options


@click.command(cls=SectionedCommand)
@click.option("--count", type=click.IntRange(0), help="Number of standby machines; 0 stops keeping them.")
@click.option("--snapshot", metavar="SNAPSHOT", help="Keep forks of this snapshot.")
@spec_options
@click.argument("image", type=IMAGE, required=False)
@json_option
def standby(
    image: str | None, snapshot: str | None, count: int | None, as_json: bool, force: bool, **given: Any
) -> None:
    """Keep standby machines for the next `bough run` of IMAGE, or the next `bough fork` of a snapshot.

    A run gets a standby machine if the hardware is the same and the run sets no users, files or commands. A
    fork gets a standby machine unless the fork keeps the parent's identity. Standby machines are made in the
    background, and deleted while memory is short. Without IMAGE or --snapshot: list them.
    """
    spec = spec_of(image, given) if image is not None else None
    if snapshot is not None and (image is not None or any(given.values())):
        raise click.UsageError("a fork has the settings of its snapshot: --snapshot goes with --count alone")
    if image is None and snapshot is None and count is not None:
        raise click.UsageError("--count needs IMAGE or --snapshot SNAPSHOT")
    hypervisor, number = connect(), 1 if count is None else count
    if snapshot is not None:
        hypervisor.snapshot_at(snapshot).keep_standby(number)
    elif spec is not None:
        with spec.located():
            hypervisor.keep_standby_of(spec.data, number)
    kept = hypervisor.standby_machines()
    if as_json:
        show_json(kept)
        return
    rows = [
        [_of(entry), f"{entry['ready']} of {entry['count']}", _settings(entry), entry["trouble"] or ""]
        for entry in kept
    ]
    show_table(rows, ["OF", "READY", "SETTINGS", "TROUBLE"])


def _of(entry: dict[str, Any]) -> str:
    return str(entry["spec"]["image"]) if "spec" in entry else f"snapshot {entry['snapshot']}"


def _settings(entry: dict[str, Any]) -> str:
    settings = {name: value for name, value in entry.get("spec", {}).items() if name != "image"}
    return " ".join(f"{name}={value}" for name, value in settings.items()) or "-"
