"""/v1/spares: how many machines stand by for the next run of an image."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from bough.hypervisor import Hypervisor
from bough.snapshots.spares import MOST


class SparesRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")
    spec: dict[str, Any]
    count: int = Field(ge=0, le=MOST)


def routes(hypervisor: Hypervisor) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["machines"])

    @router.get("/spares")
    async def list_spares() -> list[dict[str, Any]]:
        """What was asked for, and how many of it are `ready`."""
        return hypervisor.spares.describe()

    @router.put("/spares")
    async def keep_spares(body: SparesRequest) -> list[dict[str, Any]]:
        """Keep `count` of that spec (0: none), made in the background."""
        hypervisor.want_spares(body.spec, body.count)
        return hypervisor.spares.describe()

    return router
