"""run: a machine for one command."""

from __future__ import annotations

import contextlib
import signal
import sys
from typing import Any

import click

from bough.cli.execute import run_in
from bough.cli.output import progress
from bough.cli.service import DURATION, IMAGE, connect, machine_path
from bough.cli.spec import spec_of, spec_options
from bough.errors import BoughError


@click.command(context_settings={"ignore_unknown_options": False, "allow_interspersed_args": False})
@click.option("--name", help="What to call it; implies --keep.")
@click.option("--keep", is_flag=True, help="Do not delete it afterwards.")
@click.option("-t", "--tty", is_flag=True, help="Give the command a terminal.")
@click.option("-i", "--interactive", is_flag=True, help="Pass on what is typed, also without -t.")
@click.option("-u", "--as-user", help="As whom the command runs; root by default.")
@click.option(
    "--cold", is_flag=True, help="Boot it, instead of going on from a snapshot of the booted image."
)
@click.option("--timeout", type=DURATION, default="180s", help="For the machine to answer.")
@spec_options
@click.argument("image", type=IMAGE)
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def run(
    image: str,
    command: tuple[str, ...],
    name: str | None,
    keep: bool,
    tty: bool,
    interactive: bool,
    as_user: str | None,
    cold: bool,
    timeout: float,
    force: bool,
    **given: Any,
) -> int:
    """Run COMMAND (a shell by default) on a new machine from IMAGE, and delete the machine afterwards.

    Also when it is interrupted, and when this client is killed. --keep and --name keep it, running.

    The first run of an image on such hardware boots it and keeps a snapshot; later ones go on from there.
    """
    from bough.client.hold import Hold

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda which, _: sys.exit(128 + which))
    if command[:1] == ("--",):
        command = command[1:]
    service = connect()
    ephemeral = not (keep or name)
    data = spec_of(image, given)
    machine, hold, done = None, None, False
    try:
        with progress() as report:
            body: dict[str, Any] = {"spec": data, "name": name, "force": force, "ephemeral": ephemeral}
            body |= {"cold": cold, "timeout_s": timeout}
            machine = service.long_call("POST", "/machines/run", body, progress=report)["id"]
            if ephemeral:
                hold = Hold(service, machine)
        request = {
            "argv": list(command) or ["/bin/sh", "-c", 'cd; exec "${SHELL:-/bin/sh}" -l'],
            "user": as_user,
        }
        terminal = tty or (not command and sys.stdin.isatty())
        status = run_in(service, machine, request, tty=terminal, interactive=interactive or not command)
        done = True
        return status
    finally:
        # A second Ctrl-C must not leave it behind; the service would notice all the same.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if machine is not None and ephemeral:
            with contextlib.suppress(BoughError):  # gone already, or the service is, which then deletes it
                service.call("DELETE", machine_path(machine, force=True), timeout=60)
        elif machine is not None and not done and not keep and not name:
            click.echo(f"kept: {machine}", err=True)
        if hold is not None:
            hold.release()
