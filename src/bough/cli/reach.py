"""port, proxy, ssh, ssh-config: other programs' ways to a machine, all through its agent."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click

from bough.cli.output import show_json, show_table
from bough.cli.service import DURATION, NAME, connect, json_option, machine_path
from bough.errors import GuestRefused, HostLacks, InvalidInput


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
def proxy(name: str, guest_port: int, wait_s: float) -> None:
    """Carry standard input and output to a TCP port of a machine, as ssh's ProxyCommand wants it."""
    import threading

    with _tunnel(name, guest_port, wait_s) as socket:

        def outward() -> None:
            try:
                while data := os.read(0, 128 * 1024):
                    socket.send(data)
                socket.send(b"")
            except Exception:
                pass  # the tunnel has ended: the other direction tells

        threading.Thread(target=outward, daemon=True).start()
        while isinstance(data := socket.receive(), bytes) and data:
            view = memoryview(data)
            while view:
                view = view[os.write(1, view) :]


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


@click.command("ssh-config")
@click.argument("name", type=NAME, required=False)
def ssh_config(name: str | None) -> None:
    """Print Host entries for all machines or one: bough ssh-config >> ~/.ssh/config

    They go through the agent: no address, no port of this host, no network in the machine is needed,
    and a name stays right whatever happens to the machine.
    """
    service = connect()
    machines = [service.get(machine_path(name))] if name else service.get("/machines")
    print("\n".join(_entry(machine) for machine in machines), end="")


def _entry(machine: dict[str, Any]) -> str:
    from bough.paths import Home

    home = Home.from_environment()
    program = Path(sys.argv[0]).absolute()
    command = (
        f"env BOUGH_HOME={_quote(str(home.root))} {_quote(str(program))} proxy --wait 30s {machine['id']} %p"
    )
    users = machine["spec"]["users"]
    lines = [
        f"Host {machine['name']}",
        f"    HostName {machine['name']}",
        f"    User {users[0]['name'] if users else 'root'}",
        f"    ProxyCommand {command}",
        # A name may come to mean another machine; an id never does.
        f"    HostKeyAlias bough-{machine['id']}",
        f"    UserKnownHostsFile {_quote(str(home.known_hosts))}",
        "    StrictHostKeyChecking accept-new",
        "",
    ]
    return "\n".join(lines)


def _quote(text: str) -> str:
    return f'"{text}"' if any(c in text for c in " \t") else text


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("name", type=NAME)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def ssh(name: str, arguments: tuple[str, ...]) -> None:
    """Run ssh to a machine, with ARGUMENTS of ssh."""
    import shutil
    import tempfile

    program = shutil.which("ssh")
    if program is None:
        raise HostLacks("ssh is not installed", hint="bough shell needs none")
    machine = connect().get(machine_path(name))
    # The descriptor outlives exec, the file's name does not outlive this line.
    with tempfile.TemporaryFile("w") as config:
        config.write(_entry(machine))
        config.flush()
        os.set_inheritable(config.fileno(), True)
        os.execv(program, [program, "-F", f"/proc/self/fd/{config.fileno()}", machine["name"], *arguments])
