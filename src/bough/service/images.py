"""/v1/images and /v1/doctor."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from bough.errors import BoughError, InvalidInput
from bough.hypervisor import Hypervisor
from bough.images.apt import parse_mirrors
from bough.images.build import BuildOptions
from bough.images.catalogue import describe_catalogue
from bough.images.download import is_address
from bough.progress import Report
from bough.qemu.host import run_doctor
from bough.service.answers import long_call
from bough.spec import parse_architecture, parse_lock


class BuildOptionsBody(BaseModel):
    """The options of a build. `lock` is an answer of GET /images/{reference}/lock."""

    model_config = ConfigDict(extra="forbid")
    rebuild: bool = False
    mirror: str | None = None
    security_mirror: str | None = None
    lock: dict[str, Any] | None = None

    def options(self) -> BuildOptions:
        mirrors = parse_mirrors(self.mirror, self.security_mirror)
        lock = parse_lock(self.lock) if self.lock is not None else None
        return BuildOptions(self.rebuild, mirrors, lock)


class BuildRequest(BuildOptionsBody):
    ref: str
    arch: str | None = None


class RecipeRequest(BuildOptionsBody):
    recipe: dict[str, Any]
    label: str
    arch: str | None = None


class PullRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")
    ref: str
    name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._+/:@-]{0,127}$")
    arch: str | None = None
    signed: bool = True


class CatalogueUpdate(BaseModel):
    model_config = ConfigDict(extra="forbid")
    source: str | None = None
    force: bool = False


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
    agent: bool | None = None


def routes(hypervisor: Hypervisor) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["images"])

    @router.get("/images")
    async def list_images() -> list[dict[str, Any]]:
        return hypervisor.images.describe()

    @router.post("/images/build")
    async def build_image(body: BuildRequest, request: Request) -> Response:
        """Build `ref` from packages, unless the image exists; `rebuild` builds in any case."""

        async def work(report: Report) -> Any:
            manifest = await hypervisor.images.build(
                body.ref, arch=body.arch, how=body.options(), report=report
            )
            return _described(hypervisor, manifest.digest)

        return await long_call(request, work)

    @router.post("/images/recipe")
    async def build_recipe(body: RecipeRequest, request: Request) -> Response:
        """Build the image that a recipe describes; `label` is for a recipe without a label."""

        async def work(report: Report) -> Any:
            manifest = await hypervisor.images.build_recipe(
                body.recipe, label=body.label, arch=body.arch, how=body.options(), report=report
            )
            return _described(hypervisor, manifest.digest)

        return await long_call(request, work)

    @router.post("/images/import")
    async def import_image(body: ImportRequestBody, request: Request) -> Response:
        """Import the disk image at `source`: an absolute path on this host, or an http(s) address."""

        async def work(report: Report) -> Any:
            manifest = await hypervisor.images.import_file(body.model_dump(), report=report)
            return _described(hypervisor, manifest.digest)

        return await long_call(request, work)

    @router.post("/images/pull")
    async def pull_image(body: PullRequest, request: Request) -> Response:
        """Fetch an image of the catalogue, unless the image exists.

        The catalogue says how to verify the download.
        """

        async def work(report: Report) -> Any:
            manifest = await hypervisor.images.pull(
                body.ref, arch=body.arch, label=body.name, signed=body.signed, report=report
            )
            return _described(hypervisor, manifest.digest)

        return await long_call(request, work)

    @router.get("/catalogue")
    async def search_catalogue(words: str = "", arch: str | None = None) -> dict[str, Any]:
        """List published images, and images that are built from packages."""
        return describe_catalogue(hypervisor.images.catalogues, words, arch)

    @router.post("/catalogue/update")
    async def update_catalogue(body: CatalogueUpdate, request: Request) -> Response:
        """Fetch a newer catalogue. The new catalogue replaces the present one completely, or not at all."""
        if body.source is not None and not is_address(body.source):
            raise InvalidInput(f"{body.source[:200]!r} is not an http or https address")

        async def work(report: Report) -> Any:
            await hypervisor.images.update_catalogue(body.source, force=body.force, report=report)
            return describe_catalogue(hypervisor.images.catalogues)

        return await long_call(request, work)

    @router.delete("/catalogue")
    async def reset_catalogue() -> dict[str, Any]:
        """Return to the catalogue that is part of bough."""
        hypervisor.images.catalogues.reset()
        return describe_catalogue(hypervisor.images.catalogues)

    @router.get("/images/{reference}/lock")
    async def lock_image(reference: str) -> dict[str, Any]:
        """Return the versions of the packages in an image, for a later build with the same versions."""
        return hypervisor.images.lock(reference)

    @router.delete("/images/{reference}")
    async def delete_image(reference: str) -> dict[str, bool]:
        """Delete an image. Refused while a machine needs the image."""
        await hypervisor.images.delete(reference)
        return {"deleted": True}

    @router.post("/images/prune")
    async def prune_images() -> dict[str, Any]:
        """Delete every image that no machine needs and no label names."""
        return await hypervisor.images.prune()

    @router.get("/doctor", tags=["host"])
    async def doctor(request: Request, probe: bool = True, arch: str | None = None) -> Response:
        """Report what the host has and lacks, and how to install missing parts.

        `probe` tests the accelerators with a guest.
        """
        named = parse_architecture(arch) if arch else None

        async def work(report: Report) -> Any:
            return await run_doctor(hypervisor.home, arch=named, probe=probe, report=report)

        return await long_call(request, work)

    return router


def _described(hypervisor: Hypervisor, digest: str) -> dict[str, Any]:
    for described in hypervisor.images.describe():
        if described["digest"] == digest:
            return described
    raise BoughError(f"image {digest[:12]} was deleted meanwhile")
