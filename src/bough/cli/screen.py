"""The commands screenshot, type and screen: the display and keyboard of a machine."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from bough.cli.machine_choice import machine_named, machine_options
from bough.cli.output import clean
from bough.cli.service import NAME
from bough.errors import HostLacks, InvalidInput
from bough.home import SocketAddress

#: Viewers with support for the path of a socket -> form of the argument.
_VIEWERS = {"vncviewer": "{}", "xtigervncviewer": "{}", "remote-viewer": "vnc+unix://{}"}


@click.command()
@machine_options
@click.argument("name", type=NAME)
@click.argument("file", required=False, metavar="FILE.png")
@click.option("--text", is_flag=True, help="Print the text of the screen, if a PC shows text mode.")
def screenshot(name: str, file: str | None, text: bool) -> None:
    """Write a picture of a machine's screen to FILE.png; `-` is standard output."""
    machine = machine_named(name)
    if text:
        print(clean(machine.screen_text()))
        return
    if file is None or (file == "-" and sys.stdout.isatty()):
        raise InvalidInput("no file given for the picture", hint=f"bough screenshot {name} {name}.png")
    picture = machine.screenshot()
    if file == "-":
        sys.stdout.buffer.write(picture)
        return
    try:
        Path(file).write_bytes(picture)
    except OSError as error:
        raise InvalidInput(f"{file}: {error.strerror}") from error


@click.command("type")
@machine_options
@click.argument("name", type=NAME)
@click.argument("text", required=False, default="")
@click.option("-k", "--key", "keys", multiple=True, metavar="KEYS", help="enter, esc, f12, ctrl-alt-delete.")
def type_text(name: str, text: str, keys: tuple[str, ...]) -> None:
    """Type TEXT on a machine's keyboard (US layout), then press KEYS, one after the other."""
    machine_named(name).type(text, keys=keys)


@click.command()
@machine_options
@click.argument("name", type=NAME)
@click.option(
    "--listen",
    type=click.IntRange(0, 65535),
    metavar="PORT",
    help="Let viewers connect to this TCP port; 0: a free one.",
)
@click.option("--print", "only_print", is_flag=True, help="Only print the path of the VNC socket.")
def screen(name: str, listen: int | None, only_print: bool) -> None:
    """Show a machine's screen in a viewer (TigerVNC, virt-viewer), or offer the screen to a viewer by
    --listen.

    Any user of this host can connect to a TCP port; only you can connect to the socket.
    """
    import os
    import shutil

    machine = machine_named(name).info()
    path = machine.vnc
    if not path:
        runs = machine.state == "running"
        raise InvalidInput(
            f"machine '{name}' has no screen" if runs else f"'{name}' does not run",
            hint="create a machine with a screen: bough create --display" if runs else None,
        )
    if only_print:
        print(path)
        return
    if listen is not None:
        _offer(path, listen)
        return
    for viewer, form in _VIEWERS.items():
        program = shutil.which(viewer)
        if program is not None:
            with SocketAddress(path, inherit=True) as address:
                os.execv(program, [program, form.format(address)])
    raise HostLacks(
        "no viewer for VNC is installed",
        hint="sudo apt install tigervnc-viewer; or use --listen 5900 with any viewer",
    )


def _offer(path: str, port: int) -> None:
    """Serve one viewer after the other, until interrupted."""
    import socket

    with socket.create_server(("127.0.0.1", port)) as server:
        # accepted connections inherit the option
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        print(f"vnc://127.0.0.1:{server.getsockname()[1]}", flush=True)
        while True:
            viewer, _ = server.accept()
            with viewer, socket.socket(socket.AF_UNIX) as machine:
                with SocketAddress(path) as address:
                    machine.connect(address)
                _carry(viewer, machine)


def _carry(one: Any, other: Any) -> None:
    import select

    peers = {one: other, other: one}
    while True:
        for ready in select.select([one, other], [], [])[0]:
            try:
                data = ready.recv(128 * 1024)
                peers[ready].sendall(data)
            except OSError:
                return
            if not data:
                return
