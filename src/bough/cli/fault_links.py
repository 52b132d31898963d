"""The commands of faults of links between machines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from bough.cli.fault_options import PERCENT, RATE, for_option, seed_option, show_fault
from bough.cli.machine_choice import machine_options, machines_on, network_here
from bough.cli.service import DURATION, NAME, connect, json_option

F = TypeVar("F", bound=Callable[..., Any])
_network = click.option("--network", metavar="NETWORK", help="Default: the only network of these machines.")
_mode = click.option(
    "--mode",
    type=click.Choice(["drop", "slow", "hold"]),
    default="drop",
    help="drop: frames are lost; slow: 0.5 to 1.5 s late; hold: kept, and delivered at the end.",
)


@click.command("link")
@machine_options
@click.argument("machine", type=NAME)
@click.argument("peers", type=NAME, nargs=-1)
@_network
@click.option(
    "--direction",
    type=click.Choice(["to", "from", "both"]),
    default="both",
    help="to: only frames to MACHINE; from: only frames from MACHINE.",
)
@click.option("--delay", type=DURATION, help="Frames come later by this time, like 100ms.")
@click.option("--jitter", type=DURATION, help="The delay varies by this much. Frames keep their order.")
@click.option("--loss", type=PERCENT, help="Percentage of frames that are lost.")
@click.option("--correlation", type=PERCENT, help="Percentage of frames treated like the frame before.")
@click.option("--duplicate", type=PERCENT, help="Percentage of frames that come twice.")
@click.option("--corrupt", type=PERCENT, help="Percentage of frames with a wrong bit.")
@click.option("--reorder", type=PERCENT, help="Percentage of frames that overtake delayed frames.")
@click.option("--rate", type=RATE, help="Bits per second, like 1mbit.")
@for_option
@seed_option
@json_option
def link(machine: str, peers: tuple[str, ...], as_json: bool, **given: Any) -> None:
    """Make the links of MACHINE slow or unreliable: all of them, or only those to PEERS.

    For example, bough fault link db app --delay 100ms --loss 5%
    """
    from bough.contract.faults import AddLinkFault

    words = {name: value for name, value in given.items() if value is not None}
    machine, *others = machines_on(words.get("network"), [machine, *peers])
    request = AddLinkFault(machine=machine, peers=others, **_with_network(words))
    show_fault(connect().api.send(request), as_json)


def _partition_options(command: F) -> F:
    for option in (json_option, for_option, _mode, _network):
        command = option(command)
    return command


@click.command("partition")
@machine_options
@click.argument("groups", nargs=-1, required=True, metavar="GROUP GROUP...")
@_partition_options
def partition(groups: tuple[str, ...], as_json: bool, **given: Any) -> None:
    """Cut all links between groups of machines. A machine in no group sees all others.

    For example, bough fault partition db,replica app,web
    """
    from bough.contract.faults import AddPartition

    request = AddPartition(groups=_split(groups, given), **_with_network(given))
    show_fault(connect().api.send(request), as_json)


@click.command("isolate")
@machine_options
@click.argument("machines", type=NAME, nargs=-1, required=True)
@_partition_options
def isolate(machines: tuple[str, ...], as_json: bool, **given: Any) -> None:
    """Cut all links of each of the MACHINES. The switch still answers them (DHCP, DNS)."""
    from bough.contract.faults import AddPartition

    alone = machines_on(given["network"], machines)
    request = AddPartition(pattern="isolate", machines=alone, **_with_network(given))
    show_fault(connect().api.send(request), as_json)


@click.command("bridge")
@machine_options
@click.argument("machine", type=NAME)
@click.argument("groups", nargs=-1, metavar="[GROUP GROUP]")
@_partition_options
def bridge(machine: str, groups: tuple[str, ...], as_json: bool, **given: Any) -> None:
    """Cut the network in two halves. Only MACHINE sees both."""
    from bough.contract.faults import AddPartition

    seeing, sides = machines_on(given["network"], [machine]), _split(groups, given)
    request = AddPartition(pattern="bridge", machines=seeing, groups=sides, **_with_network(given))
    show_fault(connect().api.send(request), as_json)


@click.command("majorities-ring")
@machine_options
@click.argument("machines", type=NAME, nargs=-1)
@seed_option
@_partition_options
def majorities_ring(machines: tuple[str, ...], as_json: bool, **given: Any) -> None:
    """Let each machine see a majority of the machines, and no two the same majority.

    Without MACHINES, all running machines of the network (--network) are on the ring.
    """
    from bough.contract.faults import AddPartition

    ring = machines_on(given["network"], machines)
    request = AddPartition(pattern="majorities-ring", machines=ring, **_with_network(given))
    show_fault(connect().api.send(request), as_json)


def _split(groups: tuple[str, ...], given: dict[str, Any]) -> list[list[str]]:
    named = [[name for name in group.split(",") if name] for group in groups]
    return [machines_on(given["network"], names) for names in named]


def _with_network(given: dict[str, Any]) -> dict[str, Any]:
    network = given.get("network")
    return given if network is None else {**given, "network": network_here(network)}


COMMANDS = (link, partition, isolate, bridge, majorities_ring)
