"""Render the reference of the command line as Markdown, from the commands' code."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import click

from bough.cli.help_sections import MachineOption
from bough.cli.main import COMMANDS, cli, sections
from bough.cli.spec import spec_options

_HEAD = """# The command line

This page lists every command with its options. `bough COMMAND --help` prints the same text. Generated from
the code by `make docs`.

Data goes to standard output, everything else to standard error. Every listing takes `--json`. A size is a
number of bytes, or a number with KiB, MiB, GiB or TiB. A time is like `30s`, `2m` or `1h30m`. NAME is a
machine's name, its id, or the beginning of its id (4 digits or more).

| exit status | meaning |
|---|---|
| 0 | done |
| 1 | an error; standard error has one line, known details and a hint |
| 2 | usage error |
| 124 | time-out |
| 130 | interrupted |

`exec`, `run`, `shell` and `ssh` pass on the status of the command. The status is 128 and the signal's number
if a signal ended the command. The status is 127 if the guest has no such command, and 126 if the command
cannot be run.

| environment | meaning |
|---|---|
| `BOUGH_HOME` | directory of machines, images; default: `~/.local/share/bough`, for root `/var/lib/bough` |
| `XDG_DATA_HOME` | if set, and BOUGH_HOME is not: `bough` in this directory is BOUGH_HOME |
| `BOUGH_CATALOGUE` | address of the catalogue of images, for `bough image catalogue update` |
| `BOUGH_DEBUG` | if set, a bug in bough prints its traceback |
| `BOUGH_PROCESS_IMAGES` | `off` when the service starts: no process images, so each fork starts a QEMU |
| `BOUGH_FREE_VCPUS` | free hung vCPUs: `on`: of every QEMU; `off`: of none; default: of QEMU before 8.1 |
| `NO_COLOR` | if set, no colour; output to a file or pipe never has any |
"""


_MACHINE = """## Options of a machine

`bough create`, `bough run` and `bough standby` accept these options. [Settings of a machine](spec.md) lists
the keys for a file.
"""


def render_reference() -> str:
    """Return docs/cli.md."""
    parts = [_HEAD, "## Commands\n", _table(), ""]
    with click.Context(cli, info_name="bough") as context:
        machine = [option.get_help_record(context) for option in _machine_options()]
        parts += [_MACHINE, _options_table(machine)]
    with click.Context(cli, info_name="bough") as context:
        for name in COMMANDS:
            command = cli.get_command(context, name)
            if command is not None:
                parts += _render(command, f"bough {name}", context)
    return "\n".join(parts).rstrip() + "\n"


def _table() -> str:
    rows = []
    for title, names in sections():
        rows.append(f"| **{title}** | |")
        rows += [f"| [`{name}`](#bough-{name}) | {COMMANDS[name][2]} |" for name in names]
    return "\n".join(["| command | |", "|---|---|", *rows])


def _render(command: click.Command, name: str, parent: click.Context) -> Iterator[str]:
    context = click.Context(command, info_name=name.rpartition(" ")[2], parent=parent)
    yield f"## {name}\n" if name.count(" ") == 1 else f"### {name}\n"
    usage = " ".join(command.collect_usage_pieces(context))
    yield f"```\n{name} {usage}\n```\n"
    if command.help:
        yield _paragraphs(command.help) + "\n"
    options = [option for option in command.params if isinstance(option, click.Option)]
    shared = {option.name for option in _machine_options()}
    if shared <= {option.name for option in options}:
        options = [option for option in options if option.name not in shared]
        yield "Further options: [options of a machine](#options-of-a-machine).\n"
    if options:
        yield _options_table([option.get_help_record(context) for option in options])
    if isinstance(command, click.Group):
        for inner in command.list_commands(context):
            found = command.get_command(context, inner)
            if found is not None:
                yield from _render(found, f"{name} {inner}", context)


def _machine_options() -> list[click.Option]:
    """Return the options that describe a machine."""
    command = click.command()(spec_options(lambda: None))
    return [option for option in command.params if isinstance(option, MachineOption)]


def _options_table(records: Iterable[tuple[str, str] | None]) -> str:
    cells = [[cell.replace("|", "\\|") for cell in record] for record in records if record]
    rows = [f"| `{flag}` | {text} |" for flag, text in cells]
    return "\n".join(["| option | |", "|---|---|", *rows]) + "\n"


def _paragraphs(text: str) -> str:
    import inspect

    return "\n\n".join(" ".join(block.split()) for block in inspect.cleandoc(text).split("\n\n"))
