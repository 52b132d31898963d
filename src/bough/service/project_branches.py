"""/v1/projects/…/snapshots, /v1/project-snapshots and /v1/project-forks."""

from __future__ import annotations

from typing import Any

from fastapi import WebSocket

from bough.contract import project_branches as contract
from bough.errors import BoughError
from bough.hypervisor import Hypervisor
from bough.progress import Report
from bough.service.routes import Routes
from bough.service.snapshots import names_of
from bough.service.websocket import answering, for_each_message, ignore

Description = dict[str, Any]


def add_routes(routes: Routes) -> None:
    routes.long(contract.TakeProjectSnapshot, take_snapshot)
    routes.quick(contract.ListProjectSnapshots, list_snapshots)
    routes.quick(contract.GetProjectSnapshot, get_snapshot)
    routes.quick(contract.DeleteProjectSnapshot, delete_snapshot)
    routes.long(contract.ForkProject, fork)
    routes.long(contract.RestoreProject, restore)
    routes.long(contract.SuspendProject, suspend)
    routes.long(contract.ResumeProject, resume)
    routes.quick(contract.RemoveProject, remove)
    routes.stream(contract.HoldProject, hold)


async def take_snapshot(
    hypervisor: Hypervisor, asked: contract.TakeProjectSnapshot, report: Report
) -> Description:
    snapshots = hypervisor.project_snapshots
    taken = await snapshots.take(
        hypervisor.projects.find(asked.reference),
        label=asked.label,
        message=asked.message,
        memory=asked.memory,
        now=asked.now,
        report=report,
    )
    return snapshots.describe(taken)


async def list_snapshots(hypervisor: Hypervisor, _: contract.ListProjectSnapshots) -> list[Description]:
    snapshots = hypervisor.project_snapshots
    return [snapshots.describe(one) for one in snapshots.store]


async def get_snapshot(hypervisor: Hypervisor, asked: contract.GetProjectSnapshot) -> Description:
    snapshots = hypervisor.project_snapshots
    return snapshots.describe(snapshots.store.find(asked.reference))


async def delete_snapshot(hypervisor: Hypervisor, asked: contract.DeleteProjectSnapshot) -> dict[str, bool]:
    hypervisor.project_snapshots.delete(asked.reference)
    return {"deleted": True}


async def fork(hypervisor: Hypervisor, asked: contract.ForkProject, report: Report) -> list[Description]:
    forks = await hypervisor.project_forks.fork(
        asked.source,
        names_of(asked.names, asked.count),
        ephemeral=asked.ephemeral,
        now=asked.now,
        timeout_s=asked.timeout_s,
        report=report,
    )
    describe = hypervisor.projects.describe
    return [
        {"error": made.to_dict()} if isinstance(made, BoughError) else {"project": describe(made)}
        for made in forks
    ]


async def restore(hypervisor: Hypervisor, asked: contract.RestoreProject, report: Report) -> Description:
    record = hypervisor.projects.find(asked.reference)
    await hypervisor.project_branches.restore(record, asked.snapshot, keep=asked.keep, report=report)
    return hypervisor.projects.describe(record)


async def suspend(hypervisor: Hypervisor, asked: contract.SuspendProject, report: Report) -> Description:
    record = hypervisor.projects.find(asked.reference)
    await hypervisor.project_branches.suspend(record, report=report)
    return hypervisor.projects.describe(record)


async def resume(hypervisor: Hypervisor, asked: contract.ResumeProject, report: Report) -> Description:
    record = hypervisor.projects.find(asked.reference)
    await hypervisor.project_branches.resume(record, report=report)
    return hypervisor.projects.describe(record)


async def remove(hypervisor: Hypervisor, asked: contract.RemoveProject) -> dict[str, bool]:
    await hypervisor.project_removal.discard(hypervisor.projects.find(asked.reference))
    return {"deleted": True}


async def hold(hypervisor: Hypervisor, asked: contract.HoldProject, socket: WebSocket) -> None:
    async with answering(socket):
        record = hypervisor.projects.find(asked.reference)
        await socket.accept()
        with hypervisor.project_holds.hold(record):
            await for_each_message(socket, ignore)
