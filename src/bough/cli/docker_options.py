"""Options that mean the same as in `docker run`, and that the table of settings does not have."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bough.cli.help_sections import MachineOption
from bough.errors import InvalidInput

if TYPE_CHECKING:
    from bough.client.machine import Machine


def docker_options() -> list[Callable[..., Any]]:
    return [
        click.option(
            "--env-file",
            "env_files",
            cls=MachineOption,
            multiple=True,
            metavar="FILE",
            help="File with lines NAME=VALUE for --env. May be repeated.",
        ),
        click.option(
            "-v",
            "--volume",
            "volumes",
            cls=MachineOption,
            multiple=True,
            metavar="DIR:PATH[:ro]",
            help="As --mount, but writable without :ro, as docker does. May be repeated.",
        ),
        click.option(
            "--cpus",
            cls=MachineOption,
            type=float,
            metavar="NUMBER",
            help="Limit of processor time: 1.5 is 150% of one processor. As --limit cpu=150%.",
        ),
    ]


def variables_of(files: Sequence[str], texts: Sequence[str]) -> dict[str, str]:
    """Return the variables of --env-file, and then those of --env.

    NAME alone is this shell's variable; without a value here, the variable is left out, as docker does.
    """
    lines = [line for file in files for line in _read_variables(file)]
    pairs = (text.partition("=") for text in (*lines, *texts))
    found = {name: value if equals else os.environ.get(name) for name, equals, value in pairs}
    return {name: value for name, value in found.items() if value is not None}


def _read_variables(file: str) -> list[str]:
    """Return the lines of a file in the form of docker's --env-file: no quotes, `#` begins a comment line."""
    try:
        text = Path(file).expanduser().read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "the file is not UTF-8"
        raise InvalidInput(f"--env-file {file}: {reason}") from error
    lines = [line.lstrip() for line in text.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def mount_of_volume(text: str) -> Any:
    """Return the mount of docker's -v.

    Raises:
        InvalidInput: a named or anonymous volume, or an option that bough has no equivalent for.
    """
    from bough.client.spec_files import resolve_mount

    source, colon, rest = text.partition(":")
    target, _, mode = rest.partition(":")
    if not colon:
        hint = f"leave -v {text} out: the machine's disk keeps {text}"
        raise InvalidInput(f"-v {text} names no directory of this host", hint=hint)
    if not source.startswith(("/", ".", "~")):
        hint = (
            f"leave -v out: the machine's disk keeps {target}; for a directory of this host write "
            f"-v ./{text}; for a disk of its own, --extra-disk SIZE"
        )
        raise InvalidInput(f"-v {text} names a volume, and bough has no named volumes", hint=hint)
    if mode not in ("", "ro", "rw"):
        raise InvalidInput(f"-v {text}: bough knows the modes ro and rw, not {mode!r}")
    return resolve_mount(f"{source}:{target}:{mode or 'rw'}")


def show_exposed(machine: Machine) -> None:
    """Print the ports of --publish-all on standard error. The names of machines go to standard output."""
    info = machine.info()
    for port in info.ports if info.spec.get("publish_exposed") else ():
        click.echo(f"{port.host}:{port.host_port} is forwarded to port {port.guest_port}", err=True)


def percent_of(cpus: float) -> str:
    """Return the limit for docker's --cpus."""
    if not cpus >= 0.01:
        raise InvalidInput(f"--cpus expects a number of processors like 1.5, got {cpus:g}")
    return f"{round(cpus * 100)}%"
