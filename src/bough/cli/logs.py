"""The command logs: the consoles of one machine, or of several with names in front."""

from __future__ import annotations

import sys
import threading
import time
from typing import TYPE_CHECKING

import click

from bough.cli.machine_choice import machine_named
from bough.cli.output import clean
from bough.cli.project_choice import existing, project_options
from bough.cli.service import NAME
from bough.errors import BoughError

if TYPE_CHECKING:
    from bough.client.machine import Machine

#: A machine that does not run has no console to follow; it may start again.
_AGAIN_S = 1.0
_MOST_LINE = 4096


@click.command()
@click.argument("names", type=NAME, nargs=-1)
@project_options
@click.option("-f", "--follow", is_flag=True, help="Keep printing new output.")
@click.option("-n", "--tail", "tail_bytes", type=int, default=65536, help="Bytes to print, from the end.")
@click.option("--qemu", is_flag=True, help="Print QEMU's standard error instead.")
@click.option("--raw", is_flag=True, help="Keep the guest's escape sequences, also harmful ones.")
def logs(
    names: tuple[str, ...],
    file: str | None,
    project: str | None,
    follow: bool,
    tail_bytes: int,
    qemu: bool,
    raw: bool,
) -> None:
    """Print the output of the consoles of machines. Without NAMES: of all machines of the project.

    The output of several machines has their names in front.
    """
    if len(names) == 1 and file is None and project is None:
        _print_one(machine_named(names[0]), follow and not qemu, tail_bytes, qemu=qemu, raw=raw)
        return
    machines = _chosen(names, file, project)
    lines = _Lines(machines, raw=raw)
    for name, machine in machines.items():
        lines.write(name, machine.logs("qemu" if qemu else "console", tail_bytes=tail_bytes) + "\n")
    if follow and not qemu:
        lines.follow_all(machines)


def _chosen(names: tuple[str, ...], file: str | None, project: str | None) -> dict[str, Machine]:
    """Return name to print -> machine."""
    if names and file is None and project is None:
        return {name: machine_named(name) for name in names}
    chosen = existing(file, project)
    return {role: chosen[role] for role in names} if names else chosen.machines


def _print_one(machine: Machine, follow: bool, tail_bytes: int, *, qemu: bool, raw: bool) -> None:
    def show(text: str) -> None:
        sys.stdout.write(text if raw else clean(text))
        sys.stdout.flush()

    show(machine.logs("qemu" if qemu else "console", tail_bytes=tail_bytes))
    if follow:
        with machine.console() as socket:
            while isinstance(data := socket.receive(), bytes):
                show(data.decode(errors="replace"))


class _Lines:
    """Print whole lines of several machines, each with its machine's name in front."""

    def __init__(self, machines: dict[str, Machine], *, raw: bool) -> None:
        self._raw = raw
        self._width = max(map(len, machines), default=0)
        self._printing = threading.Lock()
        self._rest: dict[str, str] = dict.fromkeys(machines, "")

    def write(self, name: str, text: str) -> None:
        """Print the complete lines of a text. The rest waits for its end, unless it is very long."""
        *lines, rest = (self._rest[name] + text).split("\n")
        if len(rest) > _MOST_LINE:
            lines, rest = [*lines, rest], ""
        self._rest[name] = rest
        shown = [line if self._raw else clean(line.rstrip("\r")) for line in lines]
        with self._printing:
            for line in shown:
                if line:
                    sys.stdout.write(f"{name.ljust(self._width)} | {line}\n")
            sys.stdout.flush()

    def follow_all(self, machines: dict[str, Machine]) -> None:
        """Print new output until Ctrl-C, or until all machines are deleted."""
        threads = [
            threading.Thread(target=self._follow, args=(name, machine), daemon=True)
            for name, machine in machines.items()
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _follow(self, name: str, machine: Machine) -> None:
        while True:
            try:
                with machine.console() as socket:
                    while isinstance(data := socket.receive(), bytes):
                        self.write(name, data.decode(errors="replace"))
            except BrokenPipeError:
                return
            except BoughError as error:
                if error.code == "not-found":
                    return
            time.sleep(_AGAIN_S)
