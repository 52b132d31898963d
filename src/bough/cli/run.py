"""The command run: a machine for one command."""

from __future__ import annotations

import json
import os
from typing import Any

import click

from bough.cli.command_streams import await_machine
from bough.cli.command_words import CommandAfterName
from bough.cli.execute import carry_here, close_input, no_input_option, on_terminal, run_in
from bough.cli.output import progress
from bough.cli.service import DURATION, IMAGE, TIMEOUT_HELP, connect
from bough.cli.spec import spec_of, spec_options
from bough.client.words import encode_words


@click.command(cls=CommandAfterName, context_settings={"allow_interspersed_args": False})
@click.option("--name", help="Name of the machine; implies --keep.")
@click.option("--keep", is_flag=True, help="Keep the machine afterwards, running.")
@click.option("-t", "--tty", is_flag=True, help="Give the command a terminal.")
@click.option(
    "-i", "--interactive", is_flag=True, help="Pass on standard input from a terminal, also without -t."
)
@no_input_option
@click.option("-u", "--as-user", metavar="USER", help="Run as this user of the guest; default: root.")
@click.option("--cold", is_flag=True, help="Boot the machine instead of forking the booted snapshot.")
@click.option("--timeout", type=DURATION, help=TIMEOUT_HELP)
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
    no_input: bool,
    as_user: str | None,
    cold: bool,
    timeout: float | None,
    force: bool,
    **given: Any,
) -> int:
    """Run COMMAND (default: a shell) on a new machine from IMAGE, then delete the machine.

    The machine is also deleted if the command is interrupted or this client is killed. --keep and --name keep
    the machine, running.

    The first run of an image on such hardware boots it and takes a snapshot. Later runs fork that snapshot.
    """
    if command[:1] == ("--",):
        command = command[1:]
    if no_input:
        close_input()
    service = connect()
    spec = spec_of(image, given)
    request: dict[str, Any] = {
        "argv": list(command) or ["/bin/sh", "-c", 'cd; exec "${SHELL:-/bin/sh}" -l'],
        "user": as_user,
    }
    tty = tty or (not command and os.isatty(0))
    interactive = interactive or not command
    body = {"spec": spec, "force": force, "cold": cold, "timeout_s": timeout}
    if not (keep or name):
        # The service deletes the machine when the command ends, and when this client ends for any reason.
        socket = service.websocket("/run")
        socket.send_text(
            json.dumps({**body, "command": encode_words(request | (on_terminal() if tty else {}))})
        )
        await_machine(socket)
        return carry_here(socket, request["argv"][0], tty=tty, interactive=interactive)
    with progress() as report:
        body |= {"name": name, "ephemeral": False}
        machine = service.long_call("POST", "/machines/run", body, progress=report)["id"]
    return run_in(service, machine, request, tty=tty, interactive=interactive)
