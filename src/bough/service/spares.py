"""/v1/spares: the number of standby machines for the next run of an image, or fork of a snapshot."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from bough.errors import InvalidInput
from bough.forks.standby import MOST
from bough.hypervisor import Hypervisor


class SparesRequest(BaseModel):
    """A request for standby machines of either `spec` or `snapshot`."""

    model_config = ConfigDict(extra="forbid")
    spec: dict[str, Any] | None = None
    snapshot: str | None = None
    count: int = Field(ge=0, le=MOST)


def routes(hypervisor: Hypervisor) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["machines"])

    @router.get("/spares")
    async def list_spares() -> list[dict[str, Any]]:
        """List the requests: the spec or snapshot, and the number of machines that are `ready`."""
        return hypervisor.standby.describe()

    @router.put("/spares")
    async def keep_spares(body: SparesRequest) -> list[dict[str, Any]]:
        """Keep `count` standby machines of that spec or snapshot; 0 stops keeping them.

        bough makes the machines in the background.
        """
        if body.spec is not None and body.snapshot is None:
            hypervisor.running.want_standby(body.spec, body.count)
        elif body.snapshot is not None and body.spec is None:
            hypervisor.forking.want_standby(body.snapshot, body.count)
        else:
            raise InvalidInput("give either a spec or a snapshot")
        return hypervisor.standby.describe()

    return router
