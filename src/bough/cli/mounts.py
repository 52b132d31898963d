"""The commands mount and umount: directories of the host in a machine."""

from __future__ import annotations

from typing import Any

import click

from bough.cli.machine_choice import machine_named, machine_options
from bough.cli.output import clean, show_json, show_table
from bough.cli.service import NAME, json_option
from bough.errors import InvalidInput


@click.command()
@machine_options
@click.argument("name", type=NAME)
@click.argument("directory", metavar="[DIR:PATH[:ro|:rw]]", required=False)
@click.option(
    "--owner", metavar="USER", help="Owner of the files in the guest; default: its first user, or root."
)
@click.option(
    "--cache", metavar="TIME", help="How long the guest may cache attributes of a file; default: 1s."
)
@click.option("--again", is_flag=True, help="Retry the mounts that failed.")
@json_option
def mount(
    name: str, directory: str | None, owner: str | None, cache: str | None, again: bool, as_json: bool
) -> None:
    """Share DIR of this host with a machine, at PATH; read-only without ":rw". Without DIR: list the mounts.

    A mount persists over restarts of the machine. Forks of the machine share the same directory.
    """
    machine = machine_named(name)
    if directory is not None:
        machine.mount(**_parse(directory), owner=owner, cache=cache)
        return
    if again:
        machine.retry_mounts()
        return
    mounts = machine.mounts()
    if as_json:
        show_json([m.raw for m in mounts])
        return
    rows = [[m.source, m.target, "rw" if m.writable else "ro", clean(m.error or m.state)] for m in mounts]
    show_table(rows, ["DIRECTORY", "IN THE GUEST", "MODE", "STATE"])


@click.command()
@machine_options
@click.argument("name", type=NAME)
@click.argument("path")
@click.option("--force", is_flag=True, help="Unmount even if a program in the guest uses the directory.")
def umount(name: str, path: str, force: bool) -> None:
    """Stop sharing the directory at PATH of a machine."""
    machine_named(name).unmount(path, force=force)


def _parse(text: str) -> dict[str, Any]:
    from bough.client.spec_files import resolve_mount

    found = resolve_mount(text)
    if not isinstance(found, dict):
        raise InvalidInput(f"expected DIR:PATH[:ro|:rw] like ./src:/srv/src:rw, not {text!r}")
    return found
