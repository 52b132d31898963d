"""/v1/snapshots, and forks of machines."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from bough.errors import BoughError, InvalidInput
from bough.hypervisor import Hypervisor
from bough.hypervisor.description import describe
from bough.progress import Report
from bough.service.answers import long_call

MAX_FORKS = 1000


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class SnapshotRequest(_Body):
    machine: str
    label: str | None = None
    message: str = Field("", max_length=10_000)
    memory: bool = True
    #: Also take a snapshot of a guest that is still booting.
    now: bool = False


class RestoreRequest(_Body):
    snapshot: str
    keep: bool = False


class ForkRequest(_Body):
    """The forks to make.

    Attributes:
        names: a name for each fork; with `count`, one name to be numbered, or empty to generate names.
    """

    source: str
    names: list[str] = Field(default_factory=list, max_length=MAX_FORKS)
    count: int | None = Field(None, ge=1, le=MAX_FORKS)
    identity: Literal["new", "keep"] = "new"
    cold: bool = False
    ephemeral: bool = False
    wait: bool = True
    #: Also fork a machine whose guest is still booting.
    now: bool = False
    timeout_s: float | None = Field(None, gt=0, le=86400)


def routes(hypervisor: Hypervisor) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["snapshots"])
    tree = hypervisor.snapshots.tree

    @router.get("/snapshots")
    async def list_snapshots() -> list[dict[str, Any]]:
        return [tree.describe(manifest) for manifest in tree.store.all()]

    @router.post("/snapshots")
    async def create_snapshot(body: SnapshotRequest, request: Request) -> Response:
        """Take a snapshot of a running or stopped machine.

        A snapshot of a running machine includes the memory, unless `memory` is false.
        """
        machine = hypervisor.machines.find(body.machine)

        async def work(report: Report) -> Any:
            manifest = await hypervisor.snapshots.take(
                machine,
                label=body.label,
                message=body.message,
                memory=body.memory,
                now=body.now,
                report=report,
            )
            return tree.describe(manifest)

        return await long_call(request, work)

    @router.get("/snapshots/{reference}")
    async def get_snapshot(reference: str) -> dict[str, Any]:
        return tree.describe(tree.store.resolve(reference))

    @router.delete("/snapshots/{reference}")
    async def delete_snapshot(reference: str) -> dict[str, bool]:
        """Delete a snapshot. Forks and other snapshots are unaffected."""
        hypervisor.snapshots.delete(reference)
        return {"deleted": True}

    @router.post("/snapshots/{reference}/verify")
    async def verify_snapshot(reference: str, request: Request) -> Response:
        manifest = tree.store.resolve(reference)

        async def work(_: Report) -> Any:
            return await tree.verify(manifest)

        return await long_call(request, work)

    @router.post("/machines/{reference}/restore")
    async def restore_machine(reference: str, body: RestoreRequest, request: Request) -> Response:
        machine = hypervisor.machines.find(reference)

        async def work(report: Report) -> Any:
            await hypervisor.snapshots.restore(machine, body.snapshot, keep=body.keep, report=report)
            return describe(machine)

        return await long_call(request, work)

    @router.post("/forks")
    async def fork(body: ForkRequest, request: Request) -> Response:
        """Make forks. The answer has for each fork, in order: {"machine": ...} or {"error": ...}."""
        names = _names(body.names, body.count)

        async def work(report: Report) -> Any:
            forks = await hypervisor.forking.fork(
                body.source,
                names,
                identity=body.identity,
                cold=body.cold,
                ephemeral=body.ephemeral,
                wait=body.wait,
                now=body.now,
                timeout_s=body.timeout_s,
                report=report,
            )
            return [
                {"error": fork.to_dict()} if isinstance(fork, BoughError) else {"machine": describe(fork)}
                for fork in forks
            ]

        return await long_call(request, work)

    return router


def _names(given: list[str], count: int | None) -> list[str | None]:
    if count is None or count == len(given):
        return [*given] or [None]
    if len(given) > 1:
        raise InvalidInput(
            f"{len(given)} names for {count} forks",
            hint="give a name for each fork, or one name to be numbered",
        )
    return [f"{given[0]}-{number}" for number in range(1, count + 1)] if given else [None] * count
