"""/v1/snapshots and /v1/forks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bough.contract import snapshots as contract
from bough.errors import BoughError, InvalidInput
from bough.hypervisor import Hypervisor
from bough.hypervisor.description import describe
from bough.progress import Report
from bough.service.routes import Routes

Manifest = dict[str, Any]


def add_routes(routes: Routes) -> None:
    routes.quick(contract.ListSnapshots, list_snapshots)
    routes.long(contract.TakeSnapshot, take_snapshot)
    routes.quick(contract.GetSnapshot, get_snapshot)
    routes.quick(contract.DeleteSnapshot, delete_snapshot)
    routes.long(contract.VerifySnapshot, verify_snapshot)
    routes.long(contract.RestoreMachine, restore_machine)
    routes.long(contract.MakeForks, fork)


async def list_snapshots(hypervisor: Hypervisor, _: contract.ListSnapshots) -> list[Manifest]:
    tree = hypervisor.snapshots.tree
    return [tree.describe(manifest) for manifest in tree.store.all()]


async def take_snapshot(hypervisor: Hypervisor, asked: contract.TakeSnapshot, report: Report) -> Manifest:
    manifest = await hypervisor.snapshots.take(
        hypervisor.machines.find(asked.machine),
        label=asked.label,
        message=asked.message,
        memory=asked.memory,
        now=asked.now,
        report=report,
    )
    return hypervisor.snapshots.tree.describe(manifest)


async def get_snapshot(hypervisor: Hypervisor, asked: contract.GetSnapshot) -> Manifest:
    tree = hypervisor.snapshots.tree
    return tree.describe(tree.store.resolve(asked.reference))


async def delete_snapshot(hypervisor: Hypervisor, asked: contract.DeleteSnapshot) -> dict[str, bool]:
    hypervisor.snapshots.delete(asked.reference)
    return {"deleted": True}


async def verify_snapshot(hypervisor: Hypervisor, asked: contract.VerifySnapshot, _: Report) -> Any:
    return await hypervisor.snapshots.verify(asked.reference)


async def restore_machine(
    hypervisor: Hypervisor, asked: contract.RestoreMachine, report: Report
) -> dict[str, Any]:
    machine = hypervisor.machines.find(asked.reference)
    await hypervisor.snapshots.restore(machine, asked.snapshot, keep=asked.keep, report=report)
    return describe(machine)


async def fork(hypervisor: Hypervisor, asked: contract.MakeForks, report: Report) -> list[dict[str, Any]]:
    forks = await hypervisor.forking.fork(
        asked.source,
        names_of(asked.names, asked.count),
        identity=asked.identity,
        cold=asked.cold,
        ephemeral=asked.ephemeral,
        wait=asked.wait,
        now=asked.now,
        timeout_s=asked.timeout_s,
        report=report,
    )
    return [
        {"error": made.to_dict()} if isinstance(made, BoughError) else {"machine": describe(made)}
        for made in forks
    ]


def names_of(given: Sequence[str], count: int | None) -> list[str | None]:
    """Return a name for each fork; None: generate the name.

    Raises:
        InvalidInput: several names, and another number of forks.
    """
    if count is None or count == len(given):
        return [*given] or [None]
    if len(given) > 1:
        raise InvalidInput(
            f"{len(given)} names for {count} forks",
            hint="give a name for each fork, or one name to be numbered",
        )
    return [f"{given[0]}-{number}" for number in range(1, count + 1)] if given else [None] * count
