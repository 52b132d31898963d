"""The commands doctor, serve, version and completion."""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from bough.cli.output import clean, progress, show_json
from bough.cli.service import connect, json_option
from bough.version import __version__


@click.command()
@click.option("--store", is_flag=True, help="Check BOUGH_HOME instead of the host.")
@click.option(
    "--repair", is_flag=True, help="With --store: make the safe repairs. They never delete anything."
)
@click.option("--arch", help="Processor architecture of the machines; default: the host's.")
@json_option
def doctor(store: bool, repair: bool, arch: str | None, as_json: bool) -> int:
    """Check this host: accelerators, jail, and missing programs, with the command to install each.

    An accelerator is usable if a probe guest has run on it. The exit status is 1 if the host lacks something
    that every machine needs.

    With --store: check every image, machine, disk and file of BOUGH_HOME, and report what is wrong and which
    repair is safe. The exit status is 1 if something is wrong.
    """
    if store:
        return _doctor_store(repair, as_json)
    if repair:
        raise click.UsageError("--repair needs --store")
    with progress() as report:
        found = connect().doctor(arch=arch, timeout=None, progress=report)
    if as_json:
        show_json(found)
    else:
        _show(found)
    return int(any(check["required"] and not check["ok"] for check in found["checks"]))


def _doctor_store(repair: bool, as_json: bool) -> int:
    with progress() as report:
        found = connect().doctor_store(repair=repair, progress=report)
    if as_json:
        show_json(found)
    else:
        _show_store(found)
    return int(not found["clean"])


def _show_store(found: dict[str, Any]) -> None:
    for finding in found["findings"]:
        mark = "repaired" if finding["repaired"] else "note" if finding["harmless"] else "WRONG"
        print(f"{mark:9} {finding['kind']}: {clean(finding['problem'])}")
        print(f"{'':10}{clean(finding['error'] or finding['repaired'] or finding['safe'])}")
    for skipped in found["skipped"]:
        print(f"{'skipped':9} {skipped['what']}: {skipped['why']}")
    wrong = sum(not (each["harmless"] or each["repaired"]) for each in found["findings"])
    told = "no problems" if found["clean"] else f"{wrong} problem{'' if wrong == 1 else 's'}"
    print(f"checked {found['images']} images and {found['machines']} machines: {told}")
    if any(each["repair"] and not each["repaired"] for each in found["findings"]):
        print(
            "\nhint: bough doctor --store --repair makes the safe repairs and deletes nothing",
            file=sys.stderr,
        )


def _show(found: dict[str, Any]) -> None:
    for check in found["checks"]:
        mark = "ok     " if check["ok"] else "MISSING" if check["required"] else "without"
        print(f"{mark}  {check['name']}: {check['detail']}")
        if not check["ok"]:
            for manager, command in check["fixes"].items():
                print(f"{'':9}{manager}: {command}")
    print()
    for accelerator in found["accelerators"]:
        mark = "usable " if accelerator["usable"] else "no     "
        print(f"{mark}  {accelerator['name']}: {accelerator['detail']}")
    print()
    for part in found["jail"]:
        print(f"{'had    ' if part['had'] else 'MISSING'}  jail, {part['name']}: {part['detail']}")


_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-+=:@%$")


@click.command()
@click.option("--unit", is_flag=True, help="Only print a systemd user unit.")
@click.option("--stop", is_flag=True, help="Stop the running service; machines keep running.")
@click.option(
    "--listen",
    metavar="ADDRESS:PORT",
    help="Also serve TCP, for clients that send the token in BOUGH_HOME/token.",
)
def serve(unit: bool, stop: bool, listen: str | None) -> None:
    """Run the service of BOUGH_HOME in the foreground. Other commands start the service when needed."""
    from bough.paths import Home

    home = Home.from_environment()
    arguments = [sys.executable, "-m", "bough.service", "--home", str(home.root)]
    arguments += ["--listen", listen] if listen else []
    if unit:
        print(_render_unit(arguments), end="")
    elif stop:
        connect(start=False).shutdown()
    else:
        os.execv(sys.executable, arguments)


def _render_unit(arguments: list[str]) -> str:
    """Render the systemd unit. KillMode=process: machines run on when the service ends (systemd.kill(5))."""
    words = " ".join(_quote_for_unit(word) for word in arguments)
    return (
        "# ~/.config/systemd/user/bough.service; then:\n"
        "#   systemctl --user enable --now bough && loginctl enable-linger\n"
        "# After an upgrade: systemctl --user restart bough. Machines keep running.\n"
        "[Unit]\nDescription=bough, virtual machines\n\n"
        f"[Service]\nExecStart={words}\nKillMode=process\nRestart=on-failure\nRestartSec=1\n\n"
        "[Install]\nWantedBy=default.target\n"
    )


def _quote_for_unit(word: str) -> str:
    """Quote a word as in systemd.service(5), "Command lines": specifiers, variables, quotes and backslashes
    are taken literally.
    """
    text = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{text}"' if set(word) - _PLAIN else text


@click.command()
@json_option
def version(as_json: bool) -> None:
    """Print the version."""
    show_json({"version": __version__}) if as_json else print(f"bough {__version__}")


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script for a shell: eval "$(bough completion bash)" """
    from click.shell_completion import get_completion_class

    from bough.cli.main import cli

    kind = get_completion_class(shell)
    assert kind is not None
    print(kind(cli, {}, "bough", "_BOUGH_COMPLETE").source())
