"""A client's command as the agent's request. A container image's settings are filled in by Docker's rules."""

from __future__ import annotations

from typing import Any

from bough.contract.commands import Command, RunCommand
from bough.errors import GuestRefused, InvalidInput
from bough.guest.session import ExecRequest
from bough.machines.machine import Machine
from bough.machines.program import start_status
from bough.spec.program import has_program, resolve_command, resolve_program

#: The fields of a Command that are not the agent's.
_OURS = ("timeout_s", "patience_s", "as_program")


def request_of(command: Command, machine: Machine) -> ExecRequest:
    """Return the request for a command.

    Raises:
        InvalidInput: there is no command to run.
    """
    given: dict[str, Any] = {name: getattr(command, name) for name in command.fields if name not in _OURS}
    record = machine.record
    container, spec = record.container, record.spec
    if container is None or not command.as_image:
        if not command.argv:
            raise InvalidInput("there is no command to run", hint="name one after the machine's name")
        return ExecRequest(**{**given, "as_image": False})
    argv = resolve_program(container, spec, command.argv).argv if command.as_program else command.argv
    if not argv:
        raise InvalidInput("there is no command to run", hint="name one after the machine's name")
    found = resolve_command(
        container,
        spec,
        argv,
        env=command.env,
        user=command.user,
        cwd=command.cwd,
        hostname=record.hostname,
    )
    filled = {"argv": list(found.argv), "env": dict(found.env), "user": found.user, "cwd": found.cwd}
    return ExecRequest(**{**given, **filled})


def command_of_run(message: RunCommand, machine: Machine) -> Command | None:
    """Return the command of a run: a program's arguments, or the shell if the image has no program."""
    command, record = message.command, machine.record
    if command is None:
        return None
    if not command.argv and message.shell is not None and not has_program(record.container, record.spec):
        return message.shell
    return Command(**{**command.__dict__, "as_program": True})


def with_shell_status(error: GuestRefused, request: ExecRequest) -> GuestRefused:
    """Return the error of a command that did not start, with a shell's exit status for it."""
    if request.as_image and error.details.get("errno"):
        error.details["shell_status"] = start_status(error, request.argv)
    return error
