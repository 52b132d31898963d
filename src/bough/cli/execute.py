"""The commands exec, shell and console: a machine on this terminal."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import click

from bough.cli.command_streams import carry, write
from bough.cli.command_words import CommandAfterName
from bough.cli.machine_choice import machine_here, machine_named, machine_options
from bough.cli.service import DURATION, NAME, connect
from bough.contract.commands import LOGIN_SHELL, RESIZE, Command, ExecInMachine
from bough.errors import ServiceUnavailable

if TYPE_CHECKING:
    from bough.client.connection import Connection
    from bough.client.websocket import WebSocket

no_input_option = click.option(
    "-n", "--no-input", is_flag=True, help="Read nothing from standard input, as ssh -n."
)
DETACH = b"\x1d"  # Ctrl-]


@click.command("exec", cls=CommandAfterName, context_settings={"allow_interspersed_args": False})
@click.option("-t", "--tty", is_flag=True, help="Give the command a terminal.")
@click.option(
    "-i", "--interactive", is_flag=True, help="Pass on standard input from a terminal, also without -t."
)
@no_input_option
@click.option(
    "-e",
    "--env",
    multiple=True,
    metavar="NAME[=VALUE]",
    help="Environment variable for the command; without VALUE: this shell's, if set.",
)
@click.option("-w", "--workdir", help="Working directory in the guest.")
@click.option(
    "-u",
    "--as-user",
    "user",
    metavar="USER",
    help="Run as this user of the guest; default: the container image's user, or root.",
)
@click.option("--timeout", type=DURATION, help="Kill the command after this time; the exit status is 124.")
@machine_options
@click.argument("name", type=NAME)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def exec_command(
    name: str,
    command: tuple[str, ...],
    tty: bool,
    interactive: bool,
    no_input: bool,
    env: tuple[str, ...],
    workdir: str | None,
    user: str | None,
    timeout: float | None,
) -> int:
    """Run COMMAND in a machine with this command's standard streams. The exit status is COMMAND's.

    COMMAND is killed when this client ends for any reason.

    COMMAND reads this command's standard input to the end: use -n in a loop that reads lines.

    In a machine from a container image, COMMAND has the environment, the user and the directory of the image,
    as for `docker exec`.

    With --as-user COMMAND gets the user's environment, without a login session. For a login session, with
    limits and a user manager: bough exec NAME -- su -l USER -c COMMAND
    """
    if command[0] == "--":
        command = command[1:]
    if no_input:
        close_input()
    request = Command(
        argv=command,
        env=_variables(env),
        cwd=workdir,
        user=user,
        timeout_s=timeout,
        **(on_terminal() if tty else {}),
    )
    return run_in(connect().api, machine_here(name), request, interactive=interactive)


def _variables(texts: tuple[str, ...]) -> dict[str, str]:
    pairs = (text.partition("=") for text in texts)
    given = {name: value if equals else os.environ.get(name) for name, equals, value in pairs}
    return {name: value for name, value in given.items() if value is not None}


def close_input() -> None:
    """Make standard input empty, as `ssh -n` does."""
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    os.close(empty)


@click.command()
@machine_options
@click.argument("name", type=NAME)
@click.option("-u", "--as-user", "user", metavar="USER", help="Run as this user of the guest; default: root.")
def shell(name: str, user: str | None) -> int:
    """Open the user's login shell in a machine, on a terminal.

    With --as-user the shell is in a login session like ssh's (`su -l`: limits, XDG_RUNTIME_DIR, a user
    manager), if the guest has PAM. A TERM unknown to the guest becomes xterm-256color.
    """
    request = Command(
        argv=LOGIN_SHELL,
        user=user,
        login=user is not None,
        as_image=False,
        **(on_terminal() if os.isatty(0) else {}),
    )
    return run_in(connect().api, machine_here(name), request, interactive=True)


def run_in(api: Connection, name: str, command: Command, *, interactive: bool = False) -> int:
    """Run a command with the streams of this process. Return the exit status for the shell."""
    socket = api.open(ExecInMachine(reference=name))
    socket.send_text(command.render())
    return carry_here(socket, command.argv[0], tty=command.tty, interactive=interactive)


def on_terminal() -> dict[str, Any]:
    return {"tty": True, "term": os.environ.get("TERM", "xterm"), **_size()}


def carry_here(socket: WebSocket, command: str, *, tty: bool, interactive: bool) -> int:
    """Carry the streams as `carry` does, with this terminal in raw mode if the command has a terminal."""
    with socket, _raw_terminal(socket if tty else None):
        return carry(socket, command, stdin=tty or interactive or not os.isatty(0))


def _size() -> dict[str, int]:
    try:
        columns, rows = os.get_terminal_size(0)
    except OSError:
        return {"rows": 24, "columns": 80}
    return {"rows": rows or 24, "columns": columns or 80}


@contextmanager
def _raw_terminal(socket: WebSocket | None) -> Iterator[None]:
    """Pass every key on, and this terminal's size. The terminal's settings are always restored."""
    if socket is None or not os.isatty(0):
        yield
        return
    import _thread
    import signal
    import termios
    import tty

    resized = {signal.SIGWINCH}

    def follow() -> None:
        while signal.sigwait(resized):
            with suppress(ServiceUnavailable):  # the command has ended
                socket.send(bytes([RESIZE]) + json.dumps(_size()).encode())

    before = termios.tcgetattr(0)
    # A thread waits for the signal. Python runs a handler only after the next output if the signal comes just
    # before the read. A handler could also interrupt a half-sent message.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, resized)
    _thread.start_new_thread(follow, ())
    # A signal that ends this process must not leave the terminal in raw mode.
    previous = {number: signal.signal(number, _leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    # Not TCSAFLUSH, the default: text typed ahead must not be lost.
    tty.setraw(0, termios.TCSADRAIN)
    try:
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, old in previous.items():
            signal.signal(number, old)


def _leave(number: int, _: object) -> None:
    sys.exit(128 + number)


@click.command()
@machine_options
@click.argument("name", type=NAME)
def console(name: str) -> None:
    """Attach to a machine's serial console; Ctrl-] detaches."""
    with machine_named(name).console(backlog=True) as socket:
        print(f"console of {name}; Ctrl-] detaches", file=sys.stderr)
        with _raw_console():
            done = threading.Event()
            threading.Thread(target=_pass_keys, args=(socket, done), daemon=True).start()
            while not done.is_set():
                try:
                    data = socket.receive(0.2)
                except TimeoutError:
                    continue
                if data is None:
                    break
                write(1, data if isinstance(data, bytes) else data.encode())
        socket.end()
    print(file=sys.stderr)


def _pass_keys(socket: Any, done: threading.Event) -> None:
    try:
        while data := os.read(0, 4096):
            before, detach, _ = data.partition(DETACH)
            if before:
                socket.send(before)
            if detach:
                break
    except Exception:
        pass  # the console is gone: the reading loop reports why
    done.set()


@contextmanager
def _raw_console() -> Iterator[None]:
    if not os.isatty(0):
        yield
        return
    import termios
    import tty

    before = termios.tcgetattr(0)
    # Not TCSAFLUSH, the default: text typed ahead must not be lost.
    tty.setraw(0, termios.TCSADRAIN)
    try:
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)
