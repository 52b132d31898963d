"""The command run: a machine for one command."""

from __future__ import annotations

import os
from typing import Any

import click

from bough.cli.command_streams import await_machine
from bough.cli.command_words import CommandAfterName
from bough.cli.execute import LOGIN_SHELL, carry_here, close_input, no_input_option, on_terminal, run_in
from bough.cli.output import progress
from bough.cli.service import DURATION, IMAGE, TIMEOUT_HELP, connect
from bough.cli.spec import spec_of, spec_options
from bough.contract.commands import Command, RunCommand, RunInMachine


@click.command(cls=CommandAfterName, context_settings={"allow_interspersed_args": False})
@click.option("--name", help="Name of the machine; implies --keep.")
@click.option("--keep", is_flag=True, help="Keep the machine afterwards, running.")
@click.option("-t", "--tty", is_flag=True, help="Give the command a terminal.")
@click.option(
    "-i", "--interactive", is_flag=True, help="Pass on standard input from a terminal, also without -t."
)
@no_input_option
@click.option("--cold", is_flag=True, help="Boot the machine instead of forking the booted snapshot.")
@click.option("--timeout", type=DURATION, help=TIMEOUT_HELP)
@spec_options
@click.argument("image", type=IMAGE, required=False)
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def run(
    image: str | None,
    command: tuple[str, ...],
    name: str | None,
    keep: bool,
    tty: bool,
    interactive: bool,
    no_input: bool,
    cold: bool,
    timeout: float | None,
    force: bool,
    **given: Any,
) -> int:
    """Run COMMAND (default: a shell) on a new machine from IMAGE, then delete the machine.

    The machine is also deleted if the command is interrupted or this client is killed. --keep and --name keep
    the machine, running.

    The first run boots the image and takes a snapshot. Later runs with the same hardware fork that snapshot.

    A file (--file) may name the image: bough run --file FILE -- COMMAND.
    """
    if image is None and not given["spec_file"]:
        raise click.UsageError("Missing argument 'IMAGE'.")
    if command[:1] == ("--",):
        command = command[1:]
    if no_input:
        close_input()
    hypervisor = connect()
    user, workdir = given["user"], given["workdir"]
    spec = spec_of(image, {**given, "user": None, "workdir": None})  # the command has both
    data = dict(spec.data)
    if isinstance(data.get("name"), str):
        own = data.pop("name")  # a machine that is deleted needs no name
        name = own if keep and name is None else name
    tty = tty or (not command and os.isatty(0))
    request = Command(argv=command or LOGIN_SHELL, user=user, cwd=workdir, **(on_terminal() if tty else {}))
    interactive = interactive or not command
    if keep or name:
        with spec.located(), progress() as report:
            machine = hypervisor.run_from(
                data, name=name, force=force, cold=cold, timeout=timeout, progress=report
            )
        return run_in(hypervisor.api, machine.id, request, interactive=interactive)
    # The service deletes the machine when the command ends, and when this client ends for any reason.
    socket = hypervisor.api.open(RunInMachine())
    message = RunCommand(spec=data, command=request, force=force, cold=cold, timeout_s=timeout)
    socket.send_text(message.render())
    with spec.located():
        await_machine(socket)
    return carry_here(socket, request.argv[0], tty=tty, interactive=interactive)
