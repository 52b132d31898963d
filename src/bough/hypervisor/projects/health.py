"""The health of a project's machines at one moment."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from bough.errors import InvalidSpec
from bough.hypervisor.projects.registry import Projects
from bough.machines.machine import Machine
from bough.projects.health import HealthChecks
from bough.projects.record import ProjectRecord
from bough.spec.project.model import ProjectMachine
from bough.spec.project.parse import parse_project


class ProjectHealth:
    def __init__(self, projects: Projects, checks: HealthChecks) -> None:
        self._projects = projects
        self._checks = checks

    async def look(self, record: ProjectRecord) -> dict[str, dict[str, Any]]:
        """Run the check of each machine once. Return role -> "health" and "health_error", for the API.

        A machine without a check is healthy if its agent answers.
        """
        wanted_machines = _machines_of(record)
        machines = self._projects.machines(record)

        async def one(role: str, machine: Machine) -> tuple[str, dict[str, Any]]:
            wanted = wanted_machines.get(role)
            check = wanted.check_of(machine.record.container) if wanted is not None else None
            found = await self._checks.look(machine, check)
            return role, {"health": found.state, "health_error": found.output or None}

        return dict(await asyncio.gather(*(one(role, machine) for role, machine in machines.items())))


def _machines_of(record: ProjectRecord) -> Mapping[str, ProjectMachine]:
    try:
        spec = parse_project(record.spec, name=record.name)
    except InvalidSpec:  # another version of bough wrote the file's content
        return {}
    return spec.machines
