"""The command cp."""

from __future__ import annotations

import sys
from itertools import groupby
from typing import TYPE_CHECKING

import click

from bough.cli.machine_choice import machine_here, machine_options
from bough.cli.output import clean, is_fancy, progress
from bough.errors import BoughError, InvalidInput, NotFound

if TYPE_CHECKING:
    from collections.abc import Iterable

    from bough.client.copy import CopyResult
    from bough.client.hypervisor import Hypervisor
    from bough.progress import Report


@click.command()
@click.option(
    "--owner",
    is_flag=True,
    help="Keep owners, set-id bits and capabilities; needs root on the receiving side.",
)
@machine_options
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE...")
@click.argument("destination")
def cp(sources: tuple[str, ...], destination: str, owner: bool) -> None:
    """Copy files and trees to and from a machine; one side is NAME:PATH.

    Works like `cp -r`, in both directions: a file or a tree becomes DESTINATION, or goes into an existing
    directory DESTINATION. SOURCE/. means the content of SOURCE. Several sources need a directory. - is
    standard input or output, for one file.

    Kept: modes, times, links, hard links, holes, ACLs, user.* attributes. Owners (by number), set-id bits and
    capabilities need --owner. Pipes, sockets and devices are left out. Standard error names each loss.

    Existing entries: directories merge, and keep their modes. A file or a link replaces a file, or a link
    that does not lead to a directory. A link replaces any link. Every other existing entry stays, such as a
    link where SOURCE has a directory. An error names the entry, the rest is copied, and the status is 1.
    Links in DESTINATION itself are followed.
    """
    from bough.client import connect

    machines = {place[0] for place in map(_split, sources) if place is not None}
    come, go = [_split(source) for source in sources], _split(destination)
    if (None in come) == (go is None) or (go is None and not all(come)) or (go is not None and machines):
        raise InvalidInput(
            "one of the two sides must be on a machine, written NAME:PATH",
            hint="bough cp web:/etc/hosts . copies from machine 'web', bough cp hosts web:/tmp/ to it",
        )
    if len(sources) > 1 and "-" in (*sources, destination):
        raise InvalidInput("standard input and output are for one file", hint="copy the files one by one")
    with connect() as hypervisor, progress(quiet=not is_fancy()) as report:
        try:
            if go is not None:
                go = (machine_here(go[0]), go[1])
                _copy_in(hypervisor, sources, go, owner, report)
            else:
                places = [(machine_here(place[0]), place[1]) for place in come if place]
                _copy_out(hypervisor, places, destination, owner, report)
        except BoughError as error:
            _tell(error.details.pop("not_kept", ()))
            raise


def _copy_in(
    hypervisor: Hypervisor, sources: tuple[str, ...], go: tuple[str, str], owner: bool, report: Report
) -> None:
    from bough.client.copy import copy_in

    machine = hypervisor.machine(go[0])
    source = sys.stdin.buffer if sources == ("-",) else list(sources)
    _tell_of(copy_in(machine, source, go[1], report, owner=owner))


def _copy_out(
    hypervisor: Hypervisor, come: list[tuple[str, str]], destination: str, owner: bool, report: Report
) -> None:
    from pathlib import Path

    from bough.client.copy import copy_out

    if len(come) > 1 and not Path(destination).is_dir():
        raise NotFound(f"no directory {destination}", hint="several sources need an existing directory")
    target = sys.stdout.buffer if destination == "-" else destination
    for name, places in groupby(come, key=lambda place: place[0]):
        paths = [path for _, path in places]
        _tell_of(copy_out(hypervisor.machine(name), paths, target, report, owner=owner))


def _tell_of(result: CopyResult) -> None:
    _tell(result.not_kept)


def _tell(sentences: Iterable[str]) -> None:
    for sentence in sentences:
        print(f"warning: {clean(sentence)}", file=sys.stderr)


def _split(text: str) -> tuple[str, str] | None:
    """Split NAME:PATH; return None for a path of this host. A path of this host has a slash before the first
    colon, as for scp.
    """
    name, colon, path = text.partition(":")
    if not colon or "/" in name or not name:
        return None
    return name, path or "."
