"""The command set: change settings of a machine that exists."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from bough.cli.help_sections import MachineOption, SectionedCommand
from bough.cli.machine_choice import machine_named, machine_options
from bough.cli.output import progress
from bough.cli.service import NAME
from bough.cli.spec import pair
from bough.spec.settings import Flag, flags, is_settable

#: Help of options that mean more, or something else, in `create`.
_HELP = {
    "--no-uplink": "An outbound network, or none.",
    "--extra-disk": "A new size of an extra disk, for each in order, as SIZE[,bus=BUS][,serial=SERIAL].",
}
_NONE = "none"


def _setting_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of `create`. Those of settings that never change are hidden: the service says why."""
    for setting, flag in reversed(list(flags())):
        command = click.option(
            _spelling(flag),
            *([flag.short] if flag.short else []),
            _parameter(flag),
            cls=MachineOption,
            hidden=not is_settable(setting),
            **_how(flag),
        )(command)
    return command


def _spelling(flag: Flag) -> str:
    if flag.kind == "switch" and isinstance(flag.value, bool):
        name = flag.name.removeprefix("--").removeprefix("no-")
        return f"--{name}/--no-{name}"
    return flag.name


def _parameter(flag: Flag) -> str:
    return flag.name.partition("/")[0].removeprefix("--").replace("-", "_")


def _how(flag: Flag) -> dict[str, Any]:
    text = _HELP.get(flag.name, flag.help)
    if flag.kind == "pair" or (flag.kind == "switch" and isinstance(flag.value, bool)):
        return {"help": text, "default": None}
    if flag.kind == "switch":
        return {"help": text, "is_flag": True, "default": None}
    kind = int if flag.kind == "number" else str
    return {
        "help": f"{text} May be repeated." if flag.many else text,
        "metavar": flag.metavar,
        "type": kind,
        "multiple": flag.many,
    }


@click.command("set", cls=SectionedCommand)
@machine_options
@click.argument("name", type=NAME)
@_setting_options
@click.option("--force", is_flag=True, help="Allow more memory, disk or vCPUs than the host has.")
def set_settings(name: str, force: bool, **given: Any) -> None:
    """Change settings of a machine: all of the given settings, or none.

    --restart and --autostart change at any time. --disk and --extra-disk grow disks while the machine runs.
    All other settings change while the machine is stopped. --nic replaces the network cards, and --extra-disk
    names all extra disks. `--limit cpu=none` removes a limit.

    A machine of a project is refused: change bough.toml, and run `bough up`. Ports and directories change by
    `bough port` and `bough mount`.
    """
    settings = _settings(given)
    if not settings:
        raise click.UsageError("no setting is given")
    with progress() as report:
        machine_named(name).set(force=force, progress=report, **settings)


def _settings(given: dict[str, Any]) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for setting, flag in flags():
        value = given[_parameter(flag)]
        if value is None or value == ():
            continue
        if setting in ("limits", "environment"):
            pairs = [pair(flag.name, text) for text in value]
            settings[setting] = {key: None if one == _NONE else one for key, one in pairs}
        elif flag.kind == "switch" and isinstance(flag.value, str):
            settings[setting] = flag.value
        else:
            settings[setting] = list(value) if flag.many else value
    return settings
