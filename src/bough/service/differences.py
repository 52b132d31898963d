"""/v1/differences."""

from __future__ import annotations

from typing import Any

from bough.contract.differences import CompareSystems
from bough.hypervisor import Hypervisor
from bough.progress import Report
from bough.service.routes import Routes


def add_routes(routes: Routes) -> None:
    routes.long(CompareSystems, compare_systems)


async def compare_systems(hypervisor: Hypervisor, asked: CompareSystems, report: Report) -> dict[str, Any]:
    return await hypervisor.differences.compare(asked.after, asked.before, report)
