"""The command run: a machine for one command, or for its program."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from bough.cli.command_streams import await_machine
from bough.cli.command_words import CommandAfterName
from bough.cli.execute import carry_here, close_input, no_input_option, on_terminal, run_in
from bough.cli.output import progress
from bough.cli.service import DURATION, IMAGE, TIMEOUT_HELP, connect
from bough.cli.spec import GivenSpec, spec_of, spec_options
from bough.contract.commands import LOGIN_SHELL, Command, RunCommand, RunInMachine

if TYPE_CHECKING:
    from bough.client.hypervisor import Hypervisor


@click.command(cls=CommandAfterName, context_settings={"allow_interspersed_args": False})
@click.option("--name", help="Name of the machine; implies --keep, unless --rm is given.")
@click.option("--keep", is_flag=True, help="Keep the machine afterwards, running.")
@click.option("--rm", is_flag=True, help="Delete the machine afterwards: the default, also with --name.")
@click.option(
    "-d",
    "--detach",
    is_flag=True,
    help="Keep the machine, and print its name when it is up. COMMAND is for the container image's program.",
)
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
    rm: bool,
    detach: bool,
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

    IMAGE may be a container image: oci:nginx, docker://HOST/NAME:TAG, oci-archive:FILE. COMMAND then follows
    ENTRYPOINT and replaces CMD, as for `docker run`. With -d the program runs as long as the machine.

    A file (--file) may name the image: bough run --file FILE -- COMMAND.
    """
    if image is None and not given["spec_file"]:
        raise click.UsageError("Missing argument 'IMAGE'.")
    _check_ways(rm=rm, keep=keep, detach=detach, on_terminal=tty or interactive)
    if command[:1] == ("--",):
        command = command[1:]
    if no_input:
        close_input()
    hypervisor = connect()
    user, workdir = given["user"], given["workdir"]
    # Without -d, user and directory are the command's. Any image has commands.
    spec = spec_of(image, given if detach else {**given, "user": None, "workdir": None})
    data = dict(spec.data)
    if isinstance(data.get("name"), str):
        own = data.pop("name")  # a machine that is deleted needs no name
        name = own if (keep or detach) and name is None else name
    if detach:
        return _start(hypervisor, spec, data, command, name, timeout, force=force, cold=cold)
    plain = {"user": user, "cwd": workdir}
    request = Command(argv=command, as_program=True, **plain, **(on_terminal() if tty else {}))
    tty_of_shell = tty or os.isatty(0)
    shell = Command(argv=LOGIN_SHELL, **plain, **(on_terminal() if tty_of_shell else {}))
    if keep or (name and not rm):
        with spec.located(), progress() as report:
            machine = hypervisor.run_from(
                data,
                name=name,
                force=force,
                cold=cold,
                program=False,
                timeout=timeout,
                progress=report,
            )
        if not command and machine.info().container is None:
            return run_in(hypervisor.api, machine.id, shell, interactive=True)
        return run_in(hypervisor.api, machine.id, request, interactive=interactive)
    # The service deletes the machine when the command ends, and when this client ends for any reason.
    socket = hypervisor.api.open(RunInMachine())
    message = RunCommand(
        spec=data,
        command=request,
        name=name,
        timeout_s=timeout,
        shell=None if command else shell,
        force=force,
        cold=cold,
    )
    socket.send_text(message.render())
    with spec.located():
        ready = await_machine(socket)
    if '"shell": true' in ready:
        return carry_here(socket, LOGIN_SHELL[0], tty=tty_of_shell, interactive=True)
    return carry_here(socket, command[0] if command else "", tty=tty, interactive=interactive)


def _check_ways(*, rm: bool, keep: bool, detach: bool, on_terminal: bool) -> None:
    if rm and (keep or detach):
        other = "--detach" if detach else "--keep"
        raise click.UsageError(f"--rm deletes the machine after its command, and {other} keeps the machine")
    if detach and on_terminal:
        raise click.UsageError(
            "-t and -i are for a command on this terminal, and --detach leaves the machine alone. "
            "For a machine that stays: bough run -d IMAGE sleep infinity"
        )


def _start(
    hypervisor: Hypervisor,
    spec: GivenSpec,
    data: dict[str, Any],
    command: tuple[str, ...],
    name: str | None,
    timeout: float | None,
    *,
    force: bool,
    cold: bool,
) -> int:
    """Run a machine whose program goes on after this command."""
    if command:
        data["command"] = list(command)
    with spec.located(), progress() as report:
        machine = hypervisor.run_from(
            data, name=name, force=force, cold=cold, timeout=timeout, progress=report
        )
    print(machine.name)
    return 0
