"""/v1/images and /v1/doctor."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict

from bough.errors import BoughError
from bough.hypervisor import Hypervisor
from bough.progress import Report
from bough.qemu.host import run_doctor
from bough.service.answers import long_call


class BuildRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")
    ref: str
    arch: str | None = None
    rebuild: bool = False
    mirror: str | None = None


class RecipeRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")
    recipe: dict[str, Any]
    label: str
    rebuild: bool = False
    mirror: str | None = None


class ImportRequestBody(BaseModel):
    model_config = ConfigDict(extra="forbid")
    source: str
    name: str | None = None
    format: str = "auto"
    arch: str | None = None
    firmware: str = "auto"
    sha256: str | None = None
    os: str = "unknown"
    version: str = ""
    disk: str | None = None
    max_size: int | None = None
    cloud_init: bool = False


def routes(hypervisor: Hypervisor) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["images"])

    @router.get("/images")
    async def list_images() -> list[dict[str, Any]]:
        return hypervisor.describe_images()

    @router.post("/images/build")
    async def build_image(body: BuildRequest, request: Request) -> Response:
        """Build `ref` from packages, unless it is here; `rebuild` builds it all the same."""

        async def work(report: Report) -> Any:
            manifest = await hypervisor.build_image(
                body.ref, arch=body.arch, rebuild=body.rebuild, mirror=body.mirror, report=report
            )
            return _described(hypervisor, manifest.digest)

        return await long_call(request, work)

    @router.post("/images/recipe")
    async def build_recipe(body: RecipeRequest, request: Request) -> Response:
        """Build what a recipe describes; `label` is for a recipe that has none."""

        async def work(report: Report) -> Any:
            manifest = await hypervisor.build_recipe(
                body.recipe, label=body.label, rebuild=body.rebuild, mirror=body.mirror, report=report
            )
            return _described(hypervisor, manifest.digest)

        return await long_call(request, work)

    @router.post("/images/import")
    async def import_image(body: ImportRequestBody, request: Request) -> Response:
        """Take over the disk image at `source`: an absolute path on this host, or an http(s) address."""

        async def work(report: Report) -> Any:
            manifest = await hypervisor.import_image(body.model_dump(), report=report)
            return _described(hypervisor, manifest.digest)

        return await long_call(request, work)

    @router.delete("/images/{reference}")
    async def delete_image(reference: str) -> dict[str, bool]:
        """Refused while a machine stands on it."""
        hypervisor.delete_image(reference)
        return {"deleted": True}

    @router.post("/images/prune")
    async def prune_images() -> dict[str, Any]:
        """Delete every image that no machine stands on and no label names."""
        return hypervisor.prune_images()

    @router.get("/doctor", tags=["host"])
    async def doctor(request: Request, probe: bool = True) -> Response:
        """What this host has, lacks, and how to get it; accelerators proven by running a guest."""

        async def work(report: Report) -> Any:
            return await run_doctor(hypervisor.home, probe=probe, report=report)

        return await long_call(request, work)

    return router


def _described(hypervisor: Hypervisor, digest: str) -> dict[str, Any]:
    for described in hypervisor.describe_images():
        if described["digest"] == digest:
            return described
    raise BoughError(f"image {digest[:12]} vanished while it was being described")
