"""/v1/images and /v1/catalogue."""

from __future__ import annotations

from typing import Any

from bough.contract import images as contract
from bough.errors import BoughError, InvalidInput
from bough.hypervisor import Hypervisor
from bough.hypervisor.captures import CaptureRequest, Refresh
from bough.images.apt import parse_mirrors
from bough.images.build import BuildOptions
from bough.images.catalogue import describe_catalogue
from bough.images.download import is_address
from bough.progress import Report
from bough.service.routes import Routes
from bough.spec import parse_architecture, parse_lock

Description = dict[str, Any]


def add_routes(routes: Routes) -> None:
    routes.quick(contract.ListImages, list_images)
    routes.long(contract.BuildImage, build_image)
    routes.long(contract.BuildRecipe, build_recipe)
    routes.long(contract.ImportImage, import_image)
    routes.long(contract.LookAtHost, look_at_host)
    routes.long(contract.CaptureImage, capture_image)
    routes.quick(contract.OriginOfCapture, origin_of_capture)
    routes.long(contract.RefreshImage, refresh_image)
    routes.long(contract.PullImage, pull_image)
    routes.long(contract.PushImage, push_image)
    routes.quick(contract.SearchCatalogue, search_catalogue)
    routes.long(contract.UpdateCatalogue, update_catalogue)
    routes.quick(contract.ResetCatalogue, reset_catalogue)
    routes.quick(contract.LockImage, lock_image)
    routes.quick(contract.GetImage, get_image)
    routes.quick(contract.DeleteImage, delete_image)
    routes.quick(contract.PruneImages, prune_images)


async def list_images(hypervisor: Hypervisor, _: contract.ListImages) -> list[Description]:
    return hypervisor.images.describe()


async def build_image(hypervisor: Hypervisor, asked: contract.BuildImage, report: Report) -> Description:
    manifest = await hypervisor.images.build(asked.ref, arch=asked.arch, how=_options(asked), report=report)
    return _describe(hypervisor, manifest.digest)


async def build_recipe(hypervisor: Hypervisor, asked: contract.BuildRecipe, report: Report) -> Description:
    manifest = await hypervisor.images.build_recipe(
        asked.recipe, label=asked.label, arch=asked.arch, how=_options(asked), report=report
    )
    return _describe(hypervisor, manifest.digest)


def _options(asked: contract.BuildImage | contract.BuildRecipe) -> BuildOptions:
    mirrors = parse_mirrors(asked.mirror, asked.security_mirror)
    lock = parse_lock(asked.lock) if asked.lock is not None else None
    return BuildOptions(asked.rebuild, mirrors, lock)


async def import_image(hypervisor: Hypervisor, asked: contract.ImportImage, report: Report) -> Description:
    given = {name: getattr(asked, name) for name in asked.fields}
    manifest = await hypervisor.images.import_file(given, report=report)
    return _describe(hypervisor, manifest.digest)


async def look_at_host(hypervisor: Hypervisor, asked: contract.LookAtHost, report: Report) -> Description:
    request = CaptureRequest(
        asked.address, asked.control, "plan", exclude=asked.exclude, disk_bytes=asked.size
    )
    return (await hypervisor.captures.look(request, report)).to_dict()


async def capture_image(hypervisor: Hypervisor, asked: contract.CaptureImage, report: Report) -> Description:
    request = CaptureRequest(
        asked.address,
        asked.control,
        asked.name,
        exclude=asked.exclude,
        disk_bytes=asked.size,
        bandwidth=asked.bandwidth,
        before=asked.before,
        after=asked.after,
        quiet=asked.quiet,
        scrub=asked.scrub,
    )
    manifest = await hypervisor.captures.capture(request, report)
    return _describe(hypervisor, manifest.digest)


async def origin_of_capture(hypervisor: Hypervisor, asked: contract.OriginOfCapture) -> dict[str, Any]:
    return {"address": hypervisor.captures.address_of(asked.reference)}


async def refresh_image(hypervisor: Hypervisor, asked: contract.RefreshImage, report: Report) -> Description:
    refresh = Refresh(asked.ref, asked.control, asked.address, asked.bandwidth)
    return _describe(hypervisor, (await hypervisor.captures.refresh(refresh, report)).digest)


async def pull_image(hypervisor: Hypervisor, asked: contract.PullImage, report: Report) -> Description:
    manifest = await hypervisor.images.pull(
        asked.ref, arch=asked.arch, label=asked.name, signed=asked.signed, report=report
    )
    return _describe(hypervisor, manifest.digest)


async def push_image(hypervisor: Hypervisor, asked: contract.PushImage, report: Report) -> Description:
    return await hypervisor.artifacts.push_image(asked.ref, asked.target, report=report)


async def search_catalogue(hypervisor: Hypervisor, asked: contract.SearchCatalogue) -> Description:
    return describe_catalogue(hypervisor.images.catalogues, asked.words, asked.arch)


async def update_catalogue(
    hypervisor: Hypervisor, asked: contract.UpdateCatalogue, report: Report
) -> Description:
    if asked.source is not None and not is_address(asked.source):
        raise InvalidInput(f"{asked.source[:200]!r} is not an http or https address")
    await hypervisor.images.update_catalogue(asked.source, force=asked.force, report=report)
    return describe_catalogue(hypervisor.images.catalogues)


async def reset_catalogue(hypervisor: Hypervisor, _: contract.ResetCatalogue) -> Description:
    hypervisor.images.catalogues.reset()
    return describe_catalogue(hypervisor.images.catalogues)


async def lock_image(hypervisor: Hypervisor, asked: contract.LockImage) -> dict[str, Any]:
    return hypervisor.images.lock(asked.reference)


async def get_image(hypervisor: Hypervisor, asked: contract.GetImage) -> Description:
    arch = parse_architecture(asked.arch) if asked.arch else None
    return _describe(hypervisor, hypervisor.images.store.resolve(asked.reference, arch).digest)


async def delete_image(hypervisor: Hypervisor, asked: contract.DeleteImage) -> dict[str, bool]:
    await hypervisor.images.delete(asked.reference)
    return {"deleted": True}


async def prune_images(hypervisor: Hypervisor, _: contract.PruneImages) -> dict[str, Any]:
    return await hypervisor.images.prune()


def _describe(hypervisor: Hypervisor, digest: str) -> Description:
    for described in hypervisor.images.describe():
        if described["digest"] == digest:
            return described
    raise BoughError(f"image {digest[:12]} was deleted meanwhile")
