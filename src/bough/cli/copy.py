"""cp."""

from __future__ import annotations

import sys

import click

from bough.cli.output import is_fancy, progress
from bough.errors import InvalidInput


@click.command()
@click.argument("source")
@click.argument("destination")
def cp(source: str, destination: str) -> None:
    """Copy files and trees to and from a machine; one side is NAME:PATH.

    As `cp -a` does: modes, times, links and holes are kept; into a directory that exists, beside
    what is there. - is standard input or output, for one file.
    """
    from bough.client import connect
    from bough.client.copy import copy_in, copy_out

    come, go = _split(source), _split(destination)
    if (come is None) == (go is None):
        raise InvalidInput(
            "one of the two must be on a machine, written NAME:PATH",
            hint="bough cp web:/etc/hosts . copies from machine 'web', bough cp hosts web:/tmp/ to it",
        )
    with connect() as hypervisor, progress(quiet=not is_fancy()) as report:
        if go is not None:
            machine = hypervisor.machine(go[0])
            copy_in(machine, sys.stdin.buffer if source == "-" else source, go[1], report)
        elif come is not None:
            machine = hypervisor.machine(come[0])
            copy_out(machine, come[1], sys.stdout.buffer if destination == "-" else destination, report)


def _split(text: str) -> tuple[str, str] | None:
    """NAME:PATH; a path of this host has a slash before its first colon, as scp takes it."""
    name, colon, path = text.partition(":")
    if not colon or "/" in name or not name:
        return None
    return name, path or "."
