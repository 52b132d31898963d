"""Build an image from packages and put it into the store."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from bough.errors import BuildFailed, NotFound
from bough.images import disk
from bough.images.apt import DEFAULT_MIRRORS, Mirrors
from bough.images.bootstrap import bootstrap, check_programs, check_subordinate_ids, prepare, remove_build
from bough.images.locks import check_lock, check_same, has_versions
from bough.images.one_build import only_one
from bough.images.platforms import PLATFORMS
from bough.images.recipes import Recipe, recipe_for
from bough.images.store import ImageManifest, ImageStore
from bough.progress import Progress, Report, ignore_progress
from bough.spec import PackageLock
from bough.storage import check_space, no_space_is_told
from bough.tasks import finish
from bough.units import GIB

#: Space for the build's root file system, the copy on the disk, and unpacked packages.
_NEEDED_BYTES = 5 * GIB // 2


@dataclass(frozen=True)
class BuildOptions:
    """Options of a build.

    Attributes:
        rebuild: build from today's packages even if the image exists.
        lock: use exactly these versions of the packages.
    """

    rebuild: bool = False
    mirrors: Mirrors = DEFAULT_MIRRORS
    lock: PackageLock | None = None


async def build(
    store: ImageStore,
    reference: str,
    *,
    arch: str,
    progress: Report = ignore_progress,
    mirrors: Mirrors = DEFAULT_MIRRORS,
    lock: PackageLock | None = None,
    rebuild: bool = False,
) -> ImageManifest:
    """Return the image of `reference`; build the image if it does not exist.

    If the same image is built twice at once, the second call waits and returns the first call's image. After
    an error or a cancelled build, any left-over file is below incoming/ until a sweep.

    Raises:
        NotFound: the recipe does not exist.
        HostLacks, NoSpace, BuildFailed
    """
    recipe = recipe_for(reference, arch)
    return await build_recipe(
        store, recipe, label=reference, progress=progress, mirrors=mirrors, lock=lock, rebuild=rebuild
    )


async def build_recipe(
    store: ImageStore,
    recipe: Recipe,
    *,
    label: str | None,
    progress: Report = ignore_progress,
    mirrors: Mirrors = DEFAULT_MIRRORS,
    lock: PackageLock | None = None,
    rebuild: bool = False,
) -> ImageManifest:
    """Return the image of a recipe. See `build`.

    An image without a label is found by the recipe until images are pruned.

    Args:
        lock: use exactly these versions of the packages. The result must be the image that the lock names.
    """
    asked = _now()
    if lock is not None:
        check_lock(lock, recipe)
    one = f"{label or recipe.digest()[:20]}-{recipe.arch}"
    lock_file = store.home.images / f".{one.replace('/', '_')}.lock"
    async with only_one(lock_file, one, progress):
        known = _known(store, label, recipe.arch) if label else store.find_recipe(recipe.digest())
        if lock is not None:
            known = store.find_recipe(recipe.digest(), lambda image: has_versions(image, lock))
        if known is not None and (not rebuild or known.created > asked):
            if label and lock is not None:
                store.label(known.digest, label)
            return known
        check_programs()
        check_subordinate_ids()
        check_space(store.home.incoming, _NEEDED_BYTES, "a build")
        work = store.home.incoming / f"build-{secrets.token_hex(6)}"
        work.mkdir(mode=0o711)
        try:
            return await _build(store, recipe, label, work, mirrors, lock, progress)
        finally:
            await finish(asyncio.to_thread(remove_build, work))


async def _build(
    store: ImageStore,
    recipe: Recipe,
    label: str | None,
    work: Path,
    mirrors: Mirrors,
    lock: PackageLock | None,
    report: Report,
) -> ImageManifest:
    report(Progress(f"building {recipe.label}"))
    identity = disk.DiskIdentity.derive(recipe.digest())
    with no_space_is_told(f"the build of {recipe.label}", work.parent):
        await finish(asyncio.to_thread(prepare, work, recipe, lock))
        await bootstrap(work, recipe, identity, report, mirrors, lock)
        report(Progress(f"building {recipe.label}: making it bootable"))
        try:
            manifest = await finish(asyncio.to_thread(_assemble, work, recipe, identity))
        except subprocess.CalledProcessError as error:
            raise BuildFailed(
                f"the image {recipe.label} could not be built: {Path(error.cmd[0]).name} failed",
                image=recipe.label,
                step="making it bootable",
                output=str(error.stderr)[-2000:],
            ) from error
        if lock is not None:
            check_same(manifest, recipe, lock)
        made = store.home.incoming / f"image-{secrets.token_hex(6)}"
        made.mkdir(mode=0o711)
        try:
            await finish(asyncio.to_thread(_take_disk, work / "disk.raw", made / "disk.raw"))
            store.add(made, manifest, label)
        except BaseException:
            shutil.rmtree(made, ignore_errors=True)
            raise
    return store.resolve(manifest.digest)


def _assemble(work: Path, recipe: Recipe, identity: disk.DiskIdentity) -> ImageManifest:
    out, image = work / "out", work / "disk.raw"
    epoch = int((out / "epoch").read_text())
    disk.write_partition_table(image, identity, recipe.arch)
    platform = PLATFORMS[recipe.arch]
    if platform.grub_bios:
        disk.write_bios_loader(image, (out / "boot.img").read_bytes(), (out / "core.img").read_bytes())
    if platform.grub_efi:
        loader = work / "boot.efi"
        shutil.copyfile(out / "boot.efi", loader)
        disk.write_esp(image, loader, platform.efi_loader, identity.esp.int & 0xFFFFFFFF, epoch)
    lasting = {
        "os": recipe.os,
        "version": recipe.version,
        "arch": recipe.arch,
        "firmware": list(platform.firmware),
        "size_bytes": disk.DISK_BYTES,
        "root_partition": disk.ROOT_PARTITION,
        "agent": "installed" if recipe.agent else None,
        "cloud_init": recipe.cloud_init,
    }
    return ImageManifest.model_validate(
        lasting
        | {
            "digest": disk.digest_image(image, lasting),
            "created": _now(),
            "label": recipe.label,
            "recipe": recipe.digest(),
            "packages": _read_versions(out / "packages"),
            "boot_loader": _read_versions(out / "boot-loader"),
        }
    )


def _read_versions(path: Path) -> dict[str, str]:
    return dict(sorted(line.split() for line in path.read_text().splitlines()))


def verify_image(manifest: ImageManifest, image: Path) -> bool:
    """Return whether the content of `image` matches the digest of its manifest. Reads the whole image."""
    return disk.digest_image(image, manifest.model_dump(mode="json")) == manifest.digest


def _take_disk(source: Path, target: Path) -> None:
    """Move the disk to a directory of the store. The disk is on stable storage afterwards."""
    source.rename(target)
    descriptor = os.open(target, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _known(store: ImageStore, label: str, arch: str) -> ImageManifest | None:
    try:
        return store.resolve(label, arch)
    except NotFound:
        return None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
