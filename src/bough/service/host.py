"""/v1/version, /v1/shutdown and /v1/doctor: the service and the host."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from bough.contract.host import AuditStore, CheckHost
from bough.contract.service import API_VERSION, GetVersion, ShutDown
from bough.hypervisor import Hypervisor
from bough.machines.record import now
from bough.progress import Report
from bough.qemu.host import run_doctor
from bough.service.request_count import RequestCount
from bough.service.routes import Routes
from bough.spec import parse_architecture
from bough.version import __version__


class ServiceCalls:
    """The calls about the service.

    Args:
        requests: counts the requests under way.
        shut_down: ends the service.
    """

    def __init__(self, requests: RequestCount, shut_down: Callable[[], None]) -> None:
        self._requests = requests
        self._shut_down = shut_down
        self._started = now()

    def add_routes(self, routes: Routes) -> None:
        routes.quick(GetVersion, self.get_version)
        routes.quick(ShutDown, self.shut_down)
        routes.long(CheckHost, check_host)
        routes.long(AuditStore, audit_store)

    async def get_version(self, hypervisor: Hypervisor, _: GetVersion) -> dict[str, Any]:
        return {
            "version": __version__,
            "api": API_VERSION,
            "pid": os.getpid(),
            "home": str(hypervisor.home.root),
            "started": self._started,
            "busy": self._requests.count,
        }

    async def shut_down(self, _: Hypervisor, __: ShutDown) -> dict[str, bool]:
        self._shut_down()
        return {"stopping": True}


async def check_host(hypervisor: Hypervisor, asked: CheckHost, report: Report) -> Any:
    arch = parse_architecture(asked.arch) if asked.arch else None
    found = await run_doctor(hypervisor.home, arch=arch, probe=asked.probe, report=report)
    found["checks"].append(asdict(await asyncio.to_thread(hypervisor.process_images.check)))
    return found


async def audit_store(hypervisor: Hypervisor, asked: AuditStore, report: Report) -> Any:
    return await hypervisor.auditing.audit(repair=asked.repair, report=report)
