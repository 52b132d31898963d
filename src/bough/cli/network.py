"""The commands of networks between machines."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from bough.cli.machine_choice import machine_here, machine_options, machines_on, network_here
from bough.cli.output import show_json, show_table
from bough.cli.service import DURATION, NAME, connect, json_option
from bough.units import format_size

if TYPE_CHECKING:
    from bough.client.websocket import WebSocket


@click.group()
def network() -> None:
    """Connect machines by private networks.

    A network is an Ethernet segment between machines of one BOUGH_HOME. A switch gives each machine an
    address (DHCP) and a name (DNS). No frame leaves the network, unless the network has an uplink.
    """


@network.command("create")
@click.argument("name")
@click.option("--subnet", metavar="SUBNET", help="IPv4 addresses, like 10.1.0.0/24. Default: from the name.")
@click.option("--mtu", type=int, help="Bytes of a frame's payload, 576 to 65520. Default: 1500.")
@click.option(
    "--uplink",
    is_flag=True,
    help="Machines without a card on the uplink reach the outside through this network.",
)
@json_option
def create_network(name: str, subnet: str | None, mtu: int | None, uplink: bool, as_json: bool) -> None:
    """Create a network. `bough create --network NAME` connects a machine to the network."""
    made = connect().create_network(name, subnet=subnet, mtu=mtu, internal=not uplink)
    show_json(made.info().raw) if as_json else print(made.name)


@network.command("list")
@json_option
def list_networks(as_json: bool) -> None:
    """List all networks."""
    found = connect().list_networks()
    if as_json:
        show_json([one.raw for one in found])
        return
    rows = [
        [
            one.name,
            one.subnet,
            str(one.mtu),
            "no" if one.internal else "yes",
            one.switch,
            " ".join(machine["machine"] for machine in one.machines) or "-",
        ]
        for one in found
    ]
    show_table(rows, ["NAME", "SUBNET", "MTU", "UPLINK", "SWITCH", "MACHINES"])


@network.command("info")
@machine_options
@click.argument("name")
@json_option
def network_info(name: str, as_json: bool) -> None:
    """Show a network: addresses, names and traffic of its machines."""
    found = connect().network(network_here(name)).info()
    if as_json:
        show_json(found.raw)
        return
    for label, value in (
        ("name", found.name),
        ("subnet", f"{found.subnet}  {found.prefix6}"),
        ("resolver", found.resolver),
        ("mtu", str(found.mtu)),
        ("uplink", "no" if found.internal else "yes"),
        ("switch", found.switch),
    ):
        print(f"{label:<10}{value}")
    if found.machines:
        print()
        show_table(
            [_row(one) for one in found.machines],
            ["MACHINE", "STATE", "IPV4", "IPV6", "MAC", "SENT", "RECEIVED", "DROPPED"],
        )


def _row(one: dict[str, Any]) -> list[str]:
    counters = one["counters"] or {}
    dropped = counters.get("dropped", {})
    # The switch receives the frames sent by the machine.
    traffic = [format_size(counters[key]) if counters else "-" for key in ("received_bytes", "sent_bytes")]
    told = " ".join(f"{why}={count}" for why, count in sorted(dropped.items())) or "-"
    return [one["machine"], one["state"], one["ipv4"] or "-", one["ipv6"], one["mac"], *traffic, told]


@network.command("delete")
@machine_options
@click.argument("names", nargs=-1, required=True)
def delete_network(names: tuple[str, ...]) -> None:
    """Delete networks that no machine uses."""
    hypervisor = connect()
    for name in names:
        hypervisor.network(network_here(name)).delete()


@network.command("attach")
@machine_options
@click.argument("name")
@click.argument("machine", type=NAME)
@click.option(
    "--alias", "aliases", multiple=True, metavar="NAME", help="A further name of the machine there."
)
def attach(name: str, machine: str, aliases: tuple[str, ...]) -> None:
    """Connect a stopped MACHINE to network NAME."""
    connect().network(network_here(name)).attach(machine_here(machine), aliases=aliases)


@network.command("detach")
@machine_options
@click.argument("name")
@click.argument("machine", type=NAME)
def detach(name: str, machine: str) -> None:
    """Disconnect a stopped MACHINE from network NAME."""
    connect().network(network_here(name)).detach(machine_here(machine))


@network.command("capture")
@machine_options
@click.argument("name")
@click.argument("file", metavar="FILE")
@click.option(
    "--machine", "machines", multiple=True, metavar="NAME", help="Only frames that this machine sends."
)
@click.option("--time", "time_s", type=DURATION, help="Stop after this time. Default: until Ctrl-C.")
def capture(name: str, file: str, machines: tuple[str, ...], time_s: float | None) -> None:
    """Write the frames of a network to FILE, as pcapng with the names of the machines; - is standard output.

    For example, bough network capture back - | wireshark -k -i -
    """
    deadline = None if time_s is None else time.monotonic() + time_s
    senders = machines_on(name, machines)
    with connect().network(network_here(name)).open_capture(senders) as socket:
        try:
            if file == "-":
                _write(socket, sys.stdout.buffer, deadline)
            else:
                with Path(file).open("wb") as target:
                    _write(socket, target, deadline)
        except KeyboardInterrupt:
            pass  # the usual end of a capture


def _write(socket: WebSocket, target: BinaryIO, deadline: float | None) -> None:
    """Write frames until the switch ends, or until the deadline."""
    left = None
    while deadline is None or (left := deadline - time.monotonic()) > 0:
        try:
            data = socket.receive(left)
        except TimeoutError:
            return
        if not isinstance(data, bytes):
            return
        target.write(data)
        target.flush()
