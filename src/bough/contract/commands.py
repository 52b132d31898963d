"""Requests to run a command in a machine, over a WebSocket.

The first byte of a binary message is the channel, numbered as in Kubernetes' remote command protocol v5. The
client's first message is text, a `Command` or a `RunCommand`. The service's last message is the status: JSON
with exit_code, signal and error. A run also sends progress as text, and then the machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from bough.contract.message import Message
from bough.contract.request import Request, stream

if TYPE_CHECKING:
    from bough.contract.checks import COMMAND_S, TERMINAL_CELLS, WAIT_S, GuestWord

LOGIN_SHELL = ("/bin/sh", "-c", 'cd; exec "${SHELL:-/bin/sh}" -l')
STDIN, STDOUT, STDERR, STATUS, RESIZE, SIGNAL, CLOSE = 0, 1, 2, 3, 4, 5, 255


class Command(Message):
    """A command and its environment. Words may have bytes that are not UTF-8, as os.fsdecode gives them.

    `as_program`: in a machine from a container image, `argv` follows ENTRYPOINT, and replaces CMD unless it
    is empty. `as_image`: unless other values are given, USER, WORKDIR and ENV of the container image apply;
    false: root's login applies.
    `login`: in a login session of `user`. `timeout_s`: the command is killed after the time. `patience_s`:
    the command is killed when the guest has had the time for itself; a busy host delays the end.
    """

    argv: Sequence[Annotated[str, GuestWord()]]
    env: Mapping[str, Annotated[str, GuestWord()]] = {}
    cwd: Annotated[str, GuestWord()] | None = None
    user: Annotated[str, GuestWord()] | None = None
    tty: bool = False
    rows: Annotated[int, TERMINAL_CELLS] = 24
    columns: Annotated[int, TERMINAL_CELLS] = 80
    term: str = "xterm"
    login: bool = False
    as_program: bool = False
    as_image: bool = True
    timeout_s: Annotated[float | None, COMMAND_S] = None
    patience_s: Annotated[float | None, COMMAND_S] = None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON has them, with bytes that are not UTF-8 as {"base64": ...}.

        Raises:
            InvalidInput: the name of a variable has such bytes.
        """
        coded = super().to_dict()
        coded["argv"] = [_encode(word) for word in self.argv]
        if self.env:
            coded["env"] = {_check_name(name): _encode(value) for name, value in self.env.items()}
        for name in ("cwd", "user"):
            if name in coded:
                coded[name] = _encode(coded[name])
        return coded

    def render(self) -> str:
        """Return the message as text. Raises InvalidInput; see `to_dict`."""
        import json

        return json.dumps(self.to_dict(), ensure_ascii=False)


class RunCommand(Message):
    """A machine and a command in it. Without a command, the machine exists until the client closes.

    In a machine from a container image, the command is one `as_program`. `shell` runs instead of a command
    without words, if the image has no program.
    """

    spec: dict[str, Any]
    command: Command | None = None
    shell: Command | None = None
    name: str | None = None
    program: bool = True
    force: bool = False
    cold: bool = False
    timeout_s: Annotated[float | None, WAIT_S] = None

    def render(self) -> str:
        """Return the message as text. Raises InvalidInput; see `Command.to_dict`."""
        import json

        return json.dumps(self.to_dict(), ensure_ascii=False)


class ExecInMachine(Request):
    """Run a command in a machine.

    `client`: version of a client that has not checked the version; the service refuses another version.
    """

    route = stream("/machines/{reference}/exec", Command)
    reference: str
    client: str | None = None


class RunInMachine(Request):
    """Run a command on a new machine, or keep a new machine until the client closes.

    `client`: as for `ExecInMachine`.
    """

    route = stream("/run", RunCommand)
    client: str | None = None


def _encode(word: str) -> str | dict[str, str]:
    try:
        word.encode()
    except UnicodeEncodeError:
        import base64
        import os

        return {"base64": base64.b64encode(os.fsencode(word)).decode()}
    return word


def _check_name(name: str) -> str:
    try:
        name.encode()
    except UnicodeEncodeError:
        from bough.errors import InvalidInput

        raise InvalidInput("the name of an environment variable must be UTF-8", hint="rename it") from None
    return name
