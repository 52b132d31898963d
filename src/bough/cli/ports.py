"""The commands port and proxy: connections of other programs to a machine, through the agent."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any

import click

from bough.cli.machine_choice import machine_here, machine_named, machine_options
from bough.cli.output import show_json, show_table
from bough.cli.project_choice import existing, project_options
from bough.cli.service import DURATION, NAME, connect, json_option
from bough.errors import BoughError, Conflict, GuestRefused, InvalidInput, ServiceUnavailable

if TYPE_CHECKING:
    from bough.client.machine import Machine
    from bough.client.project import Project
    from bough.client.tunnel import Tunnel


@click.group()
def port() -> None:
    """Forward ports of this host to a machine."""


@port.command("list")
@machine_options
@click.argument("name", type=NAME)
@json_option
def list_ports(name: str, as_json: bool) -> None:
    """List the forwarded ports of a machine."""
    ports = machine_named(name).ports()
    if as_json:
        show_json([p.raw for p in ports])
        return
    rows = [[p.host, str(p.host_port), str(p.guest_port)] for p in ports]
    show_table(rows, ["ADDRESS", "PORT", "GUEST"])


@port.command("add")
@machine_options
@click.argument("name", type=NAME)
@click.argument("forward", metavar="[ADDRESS:]HOST:GUEST")
@json_option
def add_port(name: str, forward: str, as_json: bool) -> None:
    """Forward a TCP port of this host to a port of the machine; 0:80 picks and prints a free port.

    The port listens on ADDRESS (default: 127.0.0.1) while the machine runs. The forward persists over
    restarts. The port refuses connections while no program listens on the guest's port, on any address.
    """
    made = machine_named(name).forward(**_parse(forward))
    show_json(made.raw) if as_json else print(f"{made.host}:{made.host_port}")


@port.command("remove")
@machine_options
@click.argument("name", type=NAME)
@click.argument("host_port", type=int)
def remove_port(name: str, host_port: int) -> None:
    """Stop forwarding a port."""
    machine_named(name).unforward(host_port)


def _parse(text: str) -> dict[str, Any]:
    *address, host, guest = text.rsplit(":", 2) if text.count(":") > 1 else text.split(":")
    if not (host.isdecimal() and guest.isdecimal() and text.count(":")):
        raise InvalidInput(f"expected HOST:GUEST, two port numbers like 8080:80, got {text!r}")
    return {
        "host": address[0].strip("[]") if address else "127.0.0.1",
        "host_port": int(host),
        "guest_port": int(guest),
    }


@click.command()
@click.argument("name", type=NAME, required=False)
@click.argument("guest_port", type=click.IntRange(1, 65535), required=False)
@click.option(
    "--socks",
    metavar="[ADDRESS:]PORT",
    help="Serve SOCKS5 for a project instead. ADDRESS: default: the project's own; PORT 0: a free one.",
)
@project_options
@click.option(
    "--wait",
    "wait_s",
    type=DURATION,
    default="0",
    help="How long to wait until a program listens on the port.",
)
@click.option("--authorize", metavar="USER", help="Let bough's own ssh key log in as USER first.")
@click.option("--suffix", metavar="TEXT", default="", help="Remove this ending of NAME, like .bough.")
def proxy(
    name: str | None,
    guest_port: int | None,
    socks: str | None,
    file: str | None,
    project: str | None,
    wait_s: float,
    authorize: str | None,
    suffix: str,
) -> None:
    """Connect standard input and output to a TCP port of a machine, for ssh's ProxyCommand.

    With --socks, serve SOCKS5 until Ctrl-C: programs of this host reach all machines of a project by name.
    For example, curl --proxy socks5h://127.44.1.9:1080 http://web.shop/
    """
    if socks is not None:
        if name is not None:
            raise click.UsageError("--socks is for a whole project: use it without NAME and GUEST_PORT")
        _serve_socks(existing(file, project), socks)
        return
    if name is None or guest_port is None:
        raise click.UsageError("expected NAME and GUEST_PORT, or --socks [ADDRESS:]PORT")
    _connect_streams(machine_here(name.removesuffix(suffix)), guest_port, wait_s, authorize)


def _serve_socks(project: Project, where: str) -> None:
    """Serve until Ctrl-C. The address goes to standard output."""
    from bough.client.socks import SocksServer

    host, _, port = where.rpartition(":")
    if not port.isdecimal() or int(port) > 65535:
        raise InvalidInput(f"--socks expects [ADDRESS:]PORT, like 1080, got {where!r}")
    host = host.strip("[]") or project.info().loopback
    try:
        server = SocksServer(project, host, int(port))
    except OSError as error:
        raise Conflict(
            f"cannot listen on {host}:{port}: {error.strerror}", hint="choose another port"
        ) from error
    print("socks5h://{}:{}".format(*server.address), flush=True)
    with contextlib.suppress(KeyboardInterrupt):  # the usual end
        server.serve()


def _connect_streams(name: str, guest_port: int, wait_s: float, authorize: str | None) -> None:
    import threading

    machine = connect().machine_at(name)
    with _tunnel(machine, guest_port, wait_s) as tunnel:
        if authorize is not None:
            _authorize(machine, authorize)

        unread = threading.Event()

        def outward() -> None:
            try:
                while data := os.read(0, 128 * 1024):
                    tunnel.sendall(data)
                tunnel.shutdown_write()
                _wait_unread(1)
                unread.set()
                tunnel.close()
            except Exception:
                pass  # the tunnel has ended: the other direction reports it

        threading.Thread(target=outward, daemon=True).start()
        try:
            while data := tunnel.recv(128 * 1024):
                view = memoryview(data)
                while view:
                    view = view[os.write(1, view) :]
        except (ConnectionResetError, BrokenPipeError) as error:
            if unread.is_set():  # ssh has ended, and this side has closed the tunnel
                return
            if isinstance(error, BrokenPipeError):
                raise
            raise ServiceUnavailable(str(error), hint="try again") from error


def _wait_unread(descriptor: int) -> None:
    """Wait until the read end of a pipe or socket is closed. For a file the wait never ends."""
    import select

    poll = select.poll()
    poll.register(descriptor, 0)  # poll always reports an error and a hang-up
    poll.poll()


def _tunnel(machine: Machine, guest_port: int, wait_s: float) -> Tunnel:
    import time

    deadline = time.monotonic() + wait_s
    while True:
        try:
            return machine.tunnel(guest_port)
        except GuestRefused:
            # A just started machine answers before sshd listens.
            if time.monotonic() > deadline:
                raise
        time.sleep(0.2)


def _authorize(machine: Machine, user: str) -> None:
    """Authorize bough's key. A failure is a warning only: the machine may accept another key of ssh."""
    from bough.client import ssh
    from bough.paths import Home

    try:
        _, public_key = ssh.own_key(Home.from_environment())
        ssh.authorize(machine, user, public_key)
    except (BoughError, TimeoutError) as error:
        name = machine.id
        click.echo(f"warning: {name} does not accept bough's own ssh key for {user}: {error}", err=True)
