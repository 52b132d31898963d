"""doctor, serve, version, completion."""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from bough import __version__
from bough.cli.output import clean, progress, show_json
from bough.cli.service import connect, json_option


@click.command()
@click.option("--store", is_flag=True, help="Look at everything in BOUGH_HOME instead of at the host.")
@click.option("--repair", is_flag=True, help="With --store: do what is safe. Nothing is ever deleted by it.")
@click.option("--arch", help="For machines of this processor architecture instead of the host's.")
@json_option
def doctor(store: bool, repair: bool, arch: str | None, as_json: bool) -> int:
    """Tell what this host has, what it lacks, and the command that installs it.

    An accelerator counts when a probe guest has run on it. Ends with 1 when something is missing
    that machines cannot do without.

    With --store: whether every image, machine, disk and file of BOUGH_HOME is as it should be, and
    what is safe to do about what is not. Ends with 1 when something is not.
    """
    from bough.client.connection import path_of

    if store:
        return _doctor_store(repair, as_json)
    if repair:
        raise click.UsageError("--repair goes with --store")
    with progress() as report:
        found = connect().long_call("GET", path_of("doctor", probe=True, arch=arch), progress=report)
    if as_json:
        show_json(found)
    else:
        _show(found)
    return int(any(check["required"] and not check["ok"] for check in found["checks"]))


def _doctor_store(repair: bool, as_json: bool) -> int:
    with progress() as report:
        body = {"repair": repair}
        found = connect().long_call("POST", "/doctor/store", body, timeout=None, progress=report)
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
    told = "all is as it should be" if found["clean"] else f"{wrong} found that should not be so"
    print(f"looked at {found['images']} images and {found['machines']} machines: {told}")
    if any(each["repair"] and not each["repaired"] for each in found["findings"]):
        print("\nhint: bough doctor --store --repair does what is safe and deletes nothing", file=sys.stderr)


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
@click.option("--unit", is_flag=True, help="Print a systemd user unit and do nothing else.")
@click.option("--stop", is_flag=True, help="End the service that runs; machines go on.")
@click.option(
    "--listen", metavar="ADDRESS:PORT", help="Serve TCP too, to who sends the token in BOUGH_HOME/token."
)
def serve(unit: bool, stop: bool, listen: str | None) -> None:
    """Run the service of this BOUGH_HOME in the foreground. Commands start it by themselves, too."""
    from bough.paths import Home

    home = Home.from_environment()
    arguments = [sys.executable, "-m", "bough.service", "--home", str(home.root)]
    arguments += ["--listen", listen] if listen else []
    if unit:
        print(_render_unit(arguments), end="")
    elif stop:
        from bough.client.starting import end_service

        end_service(connect(start=False))
    else:
        os.execv(sys.executable, arguments)


def _render_unit(arguments: list[str]) -> str:
    """Machines outlive it: KillMode=process leaves them alone (systemd.kill(5))."""
    words = " ".join(_quote_for_unit(word) for word in arguments)
    return (
        "# ~/.config/systemd/user/bough.service; then:\n"
        "#   systemctl --user enable --now bough && loginctl enable-linger\n"
        "# After an upgrade: systemctl --user restart bough. Machines run on meanwhile.\n"
        "[Unit]\nDescription=bough, virtual machines\n\n"
        f"[Service]\nExecStart={words}\nKillMode=process\nRestart=on-failure\nRestartSec=1\n\n"
        "[Install]\nWantedBy=default.target\n"
    )


def _quote_for_unit(word: str) -> str:
    """systemd.service(5), "Command lines": specifiers, variables, quotes and backslashes mean themselves."""
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
