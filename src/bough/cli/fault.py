"""The commands of faults."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click

from bough.cli.output import show_json, show_table
from bough.cli.service import DURATION, NAME, connect, json_option

if TYPE_CHECKING:
    from bough.contract.answers import FaultInfo

F = TypeVar("F", bound=Callable[..., Any])
Mode = Literal["drop", "slow", "hold"]


class Percent(click.ParamType):  # type: ignore[type-arg]  # generic from 8.2 on
    """A percentage like 10% or 0.5."""

    name = "percent"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            return float(str(value).removesuffix("%"))
        except ValueError:
            self.fail(f"expected a percentage like 10%, got {str(value)[:40]!r}", param, ctx)


class Rate(click.ParamType):  # type: ignore[type-arg]
    """Bits per second, like 1mbit."""

    name = "rate"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        from bough.units import parse_rate

        try:
            return parse_rate(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


PERCENT, RATE = Percent(), Rate()
_network = click.option("--network", metavar="NETWORK", help="Default: the only one of these machines.")
_for = click.option("--for", "for_s", type=DURATION, help="Heal after this time. Default: never.")
_seed = click.option("--seed", type=int, help="Repeat the random fates of an earlier fault.")
_mode = click.option(
    "--mode",
    type=click.Choice(["drop", "slow", "hold"]),
    default="drop",
    help="drop: frames are lost; slow: 0.5 to 1.5 s late; hold: kept, and delivered at the end.",
)


@click.group()
def fault() -> None:
    """Break links and machines on purpose, and heal them.

    A fault lasts until `bough fault heal`, or for the time of --for. Forks have no faults of their parent.
    """


def show_fault(found: dict[str, Any], as_json: bool) -> None:
    """Print the id of a new fault, and on standard error what the fault does."""
    if as_json:
        show_json(found)
        return
    seed = "" if found["seed"] is None else f" (seed {found['seed']})"
    click.echo(f"{found['summary']}{seed}", err=True)
    print(found["id"])


@fault.command("link")
@click.argument("machine", type=NAME)
@click.argument("peers", type=NAME, nargs=-1)
@_network
@click.option(
    "--direction",
    type=click.Choice(["to", "from", "both"]),
    default="both",
    help="to: only frames to MACHINE; from: only frames from MACHINE.",
)
@click.option("--delay", type=DURATION, help="Frames come late, like 100ms.")
@click.option("--jitter", type=DURATION, help="The delay varies by this much. Frames keep their order.")
@click.option("--loss", type=PERCENT, help="Percentage of frames that are lost.")
@click.option("--correlation", type=PERCENT, help="Percentage of frames with the fate of the one before.")
@click.option("--duplicate", type=PERCENT, help="Percentage of frames that come twice.")
@click.option("--corrupt", type=PERCENT, help="Percentage of frames with a wrong bit.")
@click.option("--reorder", type=PERCENT, help="Percentage of frames that overtake delayed frames.")
@click.option("--rate", type=RATE, help="Bits per second, like 1mbit.")
@_for
@_seed
@json_option
def link(machine: str, peers: tuple[str, ...], as_json: bool, **given: Any) -> None:
    """Make the links of MACHINE slow or unreliable: all of them, or only those to PEERS.

    For example, bough fault link db app --delay 100ms --loss 5%
    """
    from bough.contract.faults import AddLinkFault

    words = {name: value for name, value in given.items() if value is not None}
    request = AddLinkFault(machine=machine, peers=peers, **words)
    show_fault(connect().api.send(request), as_json)


def _partition_options(command: F) -> F:
    for option in (json_option, _for, _mode, _network):
        command = option(command)
    return command


@fault.command("partition")
@click.argument("groups", nargs=-1, required=True, metavar="GROUP GROUP...")
@_partition_options
def partition(groups: tuple[str, ...], as_json: bool, **given: Any) -> None:
    """Cut all links between groups of machines. A machine in no group sees all others.

    For example, bough fault partition db,replica app,web
    """
    from bough.contract.faults import AddPartition

    request = AddPartition(groups=_split(groups), **given)
    show_fault(connect().api.send(request), as_json)


@fault.command("isolate")
@click.argument("machines", type=NAME, nargs=-1, required=True)
@_partition_options
def isolate(machines: tuple[str, ...], as_json: bool, **given: Any) -> None:
    """Cut all links of each of the MACHINES. The switch still answers them (DHCP, DNS)."""
    from bough.contract.faults import AddPartition

    request = AddPartition(pattern="isolate", machines=machines, **given)
    show_fault(connect().api.send(request), as_json)


@fault.command("bridge")
@click.argument("machine", type=NAME)
@click.argument("groups", nargs=-1, metavar="[GROUP GROUP]")
@_partition_options
def bridge(machine: str, groups: tuple[str, ...], as_json: bool, **given: Any) -> None:
    """Cut the network in two halves. Only MACHINE sees both."""
    from bough.contract.faults import AddPartition

    request = AddPartition(pattern="bridge", machines=[machine], groups=_split(groups), **given)
    show_fault(connect().api.send(request), as_json)


@fault.command("majorities-ring")
@click.argument("machines", type=NAME, nargs=-1)
@_seed
@_partition_options
def majorities_ring(machines: tuple[str, ...], as_json: bool, **given: Any) -> None:
    """Let each machine see a majority of the machines, and no two the same majority.

    Without MACHINES, all running machines of the network (--network) are on the ring.
    """
    from bough.contract.faults import AddPartition

    request = AddPartition(pattern="majorities-ring", machines=machines, **given)
    show_fault(connect().api.send(request), as_json)


def _split(groups: tuple[str, ...]) -> list[list[str]]:
    return [[name for name in group.split(",") if name] for group in groups]


@fault.command("list")
@json_option
def list_faults(as_json: bool) -> None:
    """List the present faults."""
    found = connect().faults()
    if as_json:
        show_json([one.raw for one in found])
        return
    rows = [
        [
            one.id,
            one.kind,
            " ".join(one.machines) or "-",
            _until(one),
            one.summary,
        ]
        for one in found
    ]
    show_table(rows, ["ID", "KIND", "MACHINES", "UNTIL", "FAULT"])


def _until(one: FaultInfo) -> str:
    return one.ends or ("its client ends" if one.held else "healed")


@fault.command("heal")
@click.argument("faults", nargs=-1, metavar="[ID]...")
@click.option("--network", metavar="NETWORK", help="All faults of the links of this network.")
@click.option("--machine", type=NAME, help="All faults that name this machine.")
@click.option("--all", "all_faults", is_flag=True, help="All faults of this BOUGH_HOME.")
@json_option
def heal(
    faults: tuple[str, ...], network: str | None, machine: str | None, all_faults: bool, as_json: bool
) -> None:
    """End faults by id, by network, by machine, or all."""
    from bough.client.fault import read_faults
    from bough.contract.faults import HealFaults

    if not (faults or network or machine or all_faults):
        raise click.UsageError("name faults by id, or give --network, --machine or --all")
    if all_faults and (faults or network or machine):
        raise click.UsageError("--all needs no other words")
    request = HealFaults(faults=faults, network=network, machine=machine)
    healed = read_faults(connect().api.send(request))
    if as_json:
        show_json([one.raw for one in healed])
        return
    for one in healed:
        print(f"healed {one.id}: {one.summary}")
