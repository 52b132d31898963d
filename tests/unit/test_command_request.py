"""A client's command as the agent's request."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from bough.contract.commands import Command, RunCommand
from bough.errors import GuestRefused, InvalidInput
from bough.machines.machine import Machine
from bough.service.command_request import command_of_run, request_of, with_shell_status
from bough.spec import parse_spec
from bough.spec.container import Container

IMAGE = Container(
    reference="docker://docker.io/library/x:latest",
    digest="sha256:0",
    entrypoint=("/entry",),
    cmd=("serve",),
    env={"A": "1", "PATH": "/opt"},
    user="www",
    workdir="/srv",
)
SHELL = Command(argv=("/bin/sh",), tty=True)


def machine(container: Container | None = IMAGE, **settings: Any) -> Machine:
    record = SimpleNamespace(container=container, spec=parse_spec({"image": "x", **settings}), hostname="web")
    return cast(Machine, SimpleNamespace(record=record))


def test_a_command_of_another_image_is_unchanged() -> None:
    command = Command(argv=["id"], env={"A": "b"}, as_program=True, timeout_s=3.0)
    request = request_of(command, machine(None))
    assert (request.argv, request.env, request.user, request.cwd) == (["id"], {"A": "b"}, None, None)
    assert not request.as_image


def test_a_command_of_a_container_image() -> None:
    request = request_of(Command(argv=["id"], env={"A": "b"}, tty=True, rows=50), machine())
    assert request.argv == ["id"]
    assert request.env == {"PATH": "/opt", "HOSTNAME": "web", "A": "b"}
    assert (request.user, request.cwd, request.tty, request.rows) == ("www", "/srv", True, 50)
    assert request.as_image
    roots = request_of(Command(argv=["id"], as_image=False), machine())
    assert (roots.env, roots.user, roots.as_image) == ({}, None, False)


def test_a_run_has_the_entrypoint() -> None:
    message = RunCommand(spec={}, command=Command(argv=["true"]), shell=SHELL)
    command = command_of_run(message, machine())
    assert command is not None
    assert request_of(command, machine()).argv == ["/entry", "true"]
    message = RunCommand(spec={}, command=Command(argv=[]), shell=SHELL)
    command = command_of_run(message, machine())
    assert command is not None
    assert request_of(command, machine()).argv == ["/entry", "serve"]
    assert command_of_run(message, machine(None)) is SHELL
    assert command_of_run(message, machine(init="image")) is SHELL  # the program is process 1
    assert command_of_run(RunCommand(spec={}), machine()) is None


@pytest.mark.parametrize("container", [None, IMAGE])
def test_no_command(container: Container | None) -> None:
    with pytest.raises(InvalidInput, match="no command to run"):
        request_of(Command(argv=[]), machine(container))


def test_the_status_of_a_command_that_does_not_start() -> None:
    request = request_of(Command(argv=["x"]), machine())
    missing = GuestRefused("x: no such command in the guest", errno="ENOENT")
    assert with_shell_status(missing, request).details["shell_status"] == 127
    user = GuestRefused("the guest has no user 'www'", errno="ENOENT")
    assert with_shell_status(user, request).details["shell_status"] == 126
    plain = with_shell_status(
        GuestRefused("x: no", errno="ENOENT"), request_of(Command(argv=["x"]), machine(None))
    )
    assert "shell_status" not in plain.details
