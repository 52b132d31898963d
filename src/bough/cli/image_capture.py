"""The commands image capture and image refresh."""

from __future__ import annotations

from typing import Any

import click

from bough.cli.output import progress, show_json
from bough.cli.service import IMAGE, connect, json_option
from bough.errors import InvalidInput
from bough.units import format_size, parse_rate, parse_size


@click.command()
@click.argument("address", metavar="ssh://[USER@]HOST[:PORT]")
@click.option("--name", metavar="LABEL", required=True, help="Label of the image.")
@click.option(
    "--exclude",
    multiple=True,
    metavar="PATTERN",
    help="Files to leave out: a pattern of rsync, like /var/cache/* or *.iso. May be repeated.",
)
@click.option("--size", help="Size of the image's disk; default: a quarter more than what is in use.")
@click.option("--bandwidth", metavar="RATE", help="Read at most this much, like 80mbit.")
@click.option(
    "--before", metavar="COMMAND", help="Run on the host, as root, before the last pass of the copy."
)
@click.option(
    "--after", metavar="COMMAND", help="Run on the host, as root, after the last pass, also if it fails."
)
@click.option(
    "--quiet/--loud",
    default=True,
    help="Hold back mail and periodic commands in the copy, until `bough-speak` there; default: --quiet.",
)
@click.option("--scrub", is_flag=True, help="Remove private keys and passwords from the copy, and list them.")
@click.option("--dry-run", is_flag=True, help="Print what would be copied, and copy nothing.")
@json_option
def capture(
    address: str,
    name: str,
    size: str | None,
    bandwidth: str | None,
    dry_run: bool,
    exclude: tuple[str, ...],
    as_json: bool,
    **given: Any,
) -> None:
    """Make an image of a live Linux host, physical or virtual, over ssh.

    The host is only read: by rsync, as root or by sudo. A broken capture continues if the command is
    repeated. The copy has new addresses, keys and machine-id, and holds back mail and periodic commands.

    The files of a program that writes meanwhile may not fit together. --before and --after stop and start the
    program, or make a backup, around a second, short pass.
    """
    disk = _parsed("--size", parse_size, size)
    bits = _parsed("--bandwidth", parse_rate, bandwidth)
    rate = None if bits is None else bits // 8
    hypervisor = connect()
    if dry_run:
        _show_plan(hypervisor.plan_capture(address, exclude=exclude, size=disk), as_json)
        return
    with progress() as report:
        made = hypervisor.capture_image(
            address, name=name, exclude=exclude, size=disk, bandwidth=rate, progress=report, **given
        )
    show_json(made.raw) if as_json else print(f"{made.raw['label']}  {made.digest[:12]}")


@click.command()
@click.argument("reference", type=IMAGE, metavar="IMAGE")
@click.option("--address", metavar="ssh://[USER@]HOST[:PORT]", help="Where the host is now, if it has moved.")
@click.option("--bandwidth", metavar="RATE", help="Read at most this much, like 80mbit.")
@json_option
def refresh(reference: str, address: str | None, bandwidth: str | None, as_json: bool) -> None:
    """Make a newer image of a captured host. Only what changed on the host is read.

    The label moves to the new image; machines of the old image keep the old one. Options are those of the
    capture.
    """
    bits = _parsed("--bandwidth", parse_rate, bandwidth)
    hypervisor = connect()
    with progress() as report:
        made = hypervisor.refresh_image(
            reference, address=address, bandwidth=None if bits is None else bits // 8, progress=report
        )
    show_json(made.raw) if as_json else print(f"{made.raw['label']}  {made.digest[:12]}")


def _parsed(option: str, parse: Any, text: str | None) -> int | None:
    try:
        return None if text is None else int(parse(text))
    except ValueError as error:
        raise InvalidInput(f"{option}: {error}") from None


def _show_plan(plan: dict[str, Any], as_json: bool) -> None:
    if as_json:
        show_json(plan)
        return
    for mount in plan["copied"]:
        print(f"copy      {mount['point']} ({mount['type']} on {mount['device']})")
    for text in plan["notes"]:
        print(f"note      {text}")
    print(f"in use    {format_size(plan['used_bytes'])}, {plan['files']} files")
    print(f"disk      {format_size(plan['disk_bytes'])}, {plan['arch']}")
