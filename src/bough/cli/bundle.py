"""export, import, bundle: machines handed over as files."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from bough.cli.output import progress, show_json
from bough.cli.service import DURATION, TIMEOUT_HELP, connect, json_option
from bough.errors import InvalidInput, NotFound


@click.command()
@click.argument("source")
@click.argument("file")
@click.option("--disk-only", is_flag=True, help="Without the memory of a running machine.")
@click.option(
    "--without-image", is_flag=True, help="Leave out what is in its image, which the other side must have."
)
def export(source: str, file: str, disk_only: bool, without_image: bool) -> None:
    """Write a machine, or a snapshot, to FILE; `-` is standard output.

    FILE.bough is a machine to go on with elsewhere: a running one with its memory, and it runs on here.
    FILE.qcow2 and FILE.ova are its disks, for other hypervisors.
    """
    from bough.client.bundle import export_file, export_stream

    if file == "-" and sys.stdout.isatty():
        raise InvalidInput(
            "a bundle is not for a terminal", hint="bough export NAME - | ssh HOST bough import -"
        )
    with progress() as report:
        api = connect()
        if file == "-":
            export_stream(
                api,
                source,
                sys.stdout.buffer,
                disks_only=disk_only,
                without_image=without_image,
                progress=report,
            )
            sys.stdout.buffer.flush()
        else:
            export_file(api, source, file, disks_only=disk_only, without_image=without_image, progress=report)


@click.command("import")
@click.argument("file")
@click.option("--name", help="What to call it; as it was called by default.")
@click.option(
    "--identity",
    type=click.Choice(["keep", "new"]),
    default="keep",
    help="keep: it is the machine that was handed over; new: it is somebody else.",
)
@click.option("--cold", is_flag=True, help="Its disks alone; stopped.")
@click.option("--force", is_flag=True, help="More than this host has, all the same.")
@click.option("--timeout", type=DURATION, help=TIMEOUT_HELP)
@json_option
def import_bundle(
    file: str, name: str | None, identity: str, cold: bool, force: bool, timeout: float | None, as_json: bool
) -> None:
    """Take up the machine in FILE, a bundle; `-` is standard input. It goes on where it was."""
    from bough.client.bundle import import_stream

    stream = sys.stdin.buffer if file == "-" else _open(file)
    with progress() as report:
        made = import_stream(
            connect(),
            stream,
            name=name,
            identity=identity,
            cold=cold,
            force=force,
            timeout=timeout,
            progress=report,
        )
    show_json(made) if as_json else print(made["name"])


def _open(file: str):  # type: ignore[no-untyped-def]  # IO[bytes]
    path = Path(file).expanduser()
    if not path.is_file():
        raise NotFound(f"there is no file {file}", kind="file")
    return path.open("rb")


@click.group()
def bundle() -> None:
    """Look at bundles."""


@bundle.command("info")
@click.argument("file")
def bundle_info(file: str) -> None:
    """Show what a bundle says of itself, as JSON. Its content is not read."""
    from bough.bundle import read_manifest

    stream = sys.stdin.buffer if file == "-" else _open(file)
    show_json(read_manifest(stream)[0])
