"""The group `bough fault`, and the commands that list and heal faults."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from bough.cli import fault_links, fault_machines
from bough.cli.machine_choice import machine_here, machine_options, network_here
from bough.cli.output import show_json, show_table
from bough.cli.service import NAME, connect, json_option

if TYPE_CHECKING:
    from bough.contract.answers import FaultInfo


@click.group()
def fault() -> None:
    """Break links and machines on purpose, and heal them.

    A fault lasts until `bough fault heal`, or for the time of --for. Forks have no faults of their parent.
    """


for _command in (*fault_links.COMMANDS, *fault_machines.COMMANDS):
    fault.add_command(_command)


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
@machine_options
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
    network = None if network is None else network_here(network)
    machine = None if machine is None else machine_here(machine)
    request = HealFaults(faults=faults, network=network, machine=machine)
    healed = read_faults(connect().api.send_long(request))
    if as_json:
        show_json([one.raw for one in healed])
        return
    for one in healed:
        print(f"healed {one.id}: {one.summary}")
