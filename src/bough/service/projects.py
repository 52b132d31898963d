"""/v1/projects: bring projects up and down."""

from __future__ import annotations

from typing import Any

from bough.contract import projects as contract
from bough.hypervisor import Hypervisor
from bough.hypervisor.projects.machines import StartOptions
from bough.hypervisor.projects.up import UpOrder
from bough.progress import Report
from bough.service.routes import Routes

Description = dict[str, Any]


def add_routes(routes: Routes) -> None:
    routes.quick(contract.ListProjects, list_projects)
    routes.quick(contract.PlanProject, plan_project)
    routes.long(contract.UpProject, up_project)
    routes.quick(contract.GetProject, get_project)
    routes.quick(contract.GetProjectSpec, get_spec)
    routes.long(contract.DownProject, down_project)
    routes.long(contract.RestartProject, restart_project)


async def list_projects(hypervisor: Hypervisor, _: contract.ListProjects) -> list[Description]:
    projects = hypervisor.projects
    return [projects.describe(record) for record in projects.store]


async def plan_project(hypervisor: Hypervisor, asked: contract.PlanProject) -> Description:
    order = UpOrder(
        asked.spec,
        name=asked.name,
        roles=asked.machines,
        profiles=asked.profiles,
        recreate=asked.recreate,
        remove_orphans=asked.remove_orphans,
    )
    record, steps = hypervisor.project_up.plan(order)
    exists = hypervisor.projects.store.get(record.id) is not None
    return {"project": record.name, "exists": exists, "steps": [step.to_dict() for step in steps]}


async def up_project(hypervisor: Hypervisor, asked: contract.UpProject, report: Report) -> Description:
    order = UpOrder(
        asked.spec,
        name=asked.name,
        file=asked.file,
        roles=asked.machines,
        profiles=asked.profiles,
        recreate=asked.recreate,
        remove_orphans=asked.remove_orphans,
        ephemeral=asked.ephemeral,
        start=StartOptions(cold=asked.cold, force=asked.force),
        timeout_s=asked.timeout_s,
    )
    return hypervisor.projects.describe(await hypervisor.project_up.up(order, report))


async def get_project(hypervisor: Hypervisor, asked: contract.GetProject) -> Description:
    record = hypervisor.projects.find(asked.reference)
    described = hypervisor.projects.describe(record)
    if asked.look:
        found = await hypervisor.project_health.look(record)
        unknown = {"health": None, "health_error": None}
        described["machines"] = [
            {**machine, **found.get(machine["role"], unknown)} for machine in described["machines"]
        ]
    return described


async def get_spec(hypervisor: Hypervisor, asked: contract.GetProjectSpec) -> Description:
    return hypervisor.projects.find(asked.reference).spec


async def down_project(
    hypervisor: Hypervisor, asked: contract.DownProject, report: Report
) -> dict[str, bool]:
    record = hypervisor.projects.find(asked.reference)
    await hypervisor.project_down.down(
        record, volumes=asked.volumes, force=asked.force, deadline_s=asked.deadline_s, report=report
    )
    return {"deleted": asked.volumes}


async def restart_project(
    hypervisor: Hypervisor, asked: contract.RestartProject, report: Report
) -> Description:
    record = hypervisor.projects.find(asked.reference)
    await hypervisor.project_down.restart(record, asked.machines, deadline_s=asked.deadline_s, report=report)
    return hypervisor.projects.describe(record)
