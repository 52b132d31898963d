"""/v1/doctor/store: check and repair everything in the home."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict

from bough.hypervisor import Hypervisor
from bough.progress import Report
from bough.service.answers import long_call


class AuditRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")
    repair: bool = False


def routes(hypervisor: Hypervisor) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["host"])

    @router.post("/doctor/store")
    async def audit_store(body: AuditRequest, request: Request) -> Response:
        """Check everything on disk; with `repair`, make the repairs that are safe."""

        async def work(report: Report) -> Any:
            return await hypervisor.auditing.audit(repair=body.repair, report=report)

        return await long_call(request, work)

    return router
