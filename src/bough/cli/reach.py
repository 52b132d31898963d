"""port, proxy: other programs' ways to a machine, all through its agent."""

from __future__ import annotations

import os
from typing import Any

import click

from bough.cli.output import show_json, show_table
from bough.cli.service import DURATION, NAME, connect, json_option, machine_path
from bough.errors import BoughError, GuestRefused, InvalidInput


@click.group()
def port() -> None:
    """Forward ports of this host to a machine."""


@port.command("list")
@click.argument("name", type=NAME)
@json_option
def list_ports(name: str, as_json: bool) -> None:
    """List what is forwarded to a machine."""
    ports = connect().get(machine_path(name, "ports"))
    if as_json:
        show_json(ports)
        return
    rows = [[p["host"], str(p["host_port"]), str(p["guest_port"])] for p in ports]
    show_table(rows, ["ADDRESS", "PORT", "GUEST"])


@port.command("add")
@click.argument("name", type=NAME)
@click.argument("forward", metavar="[ADDRESS:]HOST:GUEST")
@json_option
def add_port(name: str, forward: str, as_json: bool) -> None:
    """Forward a TCP port of this host to one of the machine; 0:80 takes any free port and prints it.

    It listens on 127.0.0.1 unless an ADDRESS is given, while the machine runs; it stays with the machine.
    The port refuses connections while no program listens on the guest's port, on whatever address.
    """
    made = connect().post(machine_path(name, "ports"), _parse(forward))
    show_json(made) if as_json else print(f"{made['host']}:{made['host_port']}")


@port.command("remove")
@click.argument("name", type=NAME)
@click.argument("host_port", type=int)
def remove_port(name: str, host_port: int) -> None:
    """Forward a port no longer."""
    connect().call("DELETE", machine_path(name, "ports", str(host_port)))


def _parse(text: str) -> dict[str, Any]:
    *address, host, guest = text.rsplit(":", 2) if text.count(":") > 1 else text.split(":")
    if not (host.isdecimal() and guest.isdecimal() and text.count(":")):
        raise InvalidInput(f"a forward is HOST:GUEST, two port numbers, like 8080:80, not {text!r}")
    return {
        "host": address[0].strip("[]") if address else "127.0.0.1",
        "host_port": int(host),
        "guest_port": int(guest),
    }


@click.command()
@click.argument("name", type=NAME)
@click.argument("guest_port", type=click.IntRange(1, 65535))
@click.option("--wait", "wait_s", type=DURATION, default="0", help="So long for something to listen there.")
@click.option("--authorize", metavar="USER", help="Let bough's own ssh key log in as USER first.")
def proxy(name: str, guest_port: int, wait_s: float, authorize: str | None) -> None:
    """Carry standard input and output to a TCP port of a machine, as ssh's ProxyCommand wants it."""
    import threading

    with _tunnel(name, guest_port, wait_s) as socket:
        if authorize is not None:
            _authorize(name, authorize)

        def outward() -> None:
            try:
                while data := os.read(0, 128 * 1024):
                    socket.send(data)
                socket.send(b"")
                _wait_unread(1)
                socket.close()
            except Exception:
                pass  # the tunnel has ended: the other direction tells

        threading.Thread(target=outward, daemon=True).start()
        while isinstance(data := socket.receive(), bytes) and data:
            view = memoryview(data)
            while view:
                view = view[os.write(1, view) :]


def _wait_unread(descriptor: int) -> None:
    """Until nobody can read any more what is written there; for a file that is never."""
    import select

    poll = select.poll()
    poll.register(descriptor, 0)  # an error or a hang-up is always told
    poll.poll()


def _tunnel(name: str, guest_port: int, wait_s: float) -> Any:
    import time

    service, deadline = connect(), time.monotonic() + wait_s
    while True:
        try:
            return service.websocket(machine_path(name, "tunnel", port=guest_port))
        except GuestRefused:
            # A machine that was just started answers before its sshd does.
            if time.monotonic() > deadline:
                raise
        time.sleep(0.2)


def _authorize(name: str, user: str) -> None:
    """Warn where the key cannot be authorized: ssh may know another key that the machine accepts."""
    from bough.client import ssh
    from bough.paths import Home

    try:
        _, public_key = ssh.own_key(Home.from_environment())
        ssh.authorize(connect().websocket(machine_path(name, "exec")), user, public_key)
    except (BoughError, TimeoutError) as error:
        click.echo(f"warning: {name} does not accept bough's own ssh key for {user}: {error}", err=True)
