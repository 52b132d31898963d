"""Package locks: make a lock from an image, and check a build against a lock."""

from __future__ import annotations

from typing import Any

from bough.errors import BuildFailed, InvalidInput
from bough.images.recipes import Recipe
from bough.images.store import ImageManifest, ImageStore
from bough.spec import PackageLock


def lock_image(store: ImageStore, image: ImageManifest) -> PackageLock:
    """Return a lock with the versions of all packages in `image`.

    Raises:
        InvalidInput: bough did not build the image from Debian's packages.
    """
    if not image.packages:
        raise InvalidInput(
            f"bough has no list of the packages in {image.label}",
            hint="only images that bough built from Debian's packages have a lock",
        )
    below: dict[str, Any] = image.origin or {}
    if "base" not in below:
        if not image.boot_loader:
            raise InvalidInput(
                f"{image.label} was built by an older bough, which did not record its boot loader",
                hint=f"build it again: bough image build --rebuild {image.label}",
            )
        return PackageLock(
            arch=image.arch,
            recipe=image.recipe or None,  # an image of a registry has none
            digest=image.digest,
            packages=image.packages,
            boot_loader=image.boot_loader,
        )
    base = next((entry.manifest for entry in store.entries() if entry.manifest.digest == below["base"]), None)
    if base is None:
        raise InvalidInput(f"the base image of {image.label} has been deleted")
    if base.boot_loader:  # built from packages, with changes of a machine on top
        packages = base.packages | image.packages
        return PackageLock(
            arch=image.arch,
            recipe=base.recipe or None,
            # If the recipe's commands upgraded a package, a build by this lock gives another base image.
            digest=base.digest if base.packages.items() <= packages.items() else None,
            packages=packages,
            boot_loader=base.boot_loader,
        )
    return PackageLock(arch=image.arch, base=base.digest, packages=image.packages)


def check_lock(lock: PackageLock, recipe: Recipe) -> None:
    """Check that the lock fits the recipe.

    Raises:
        InvalidInput: the lock is for another recipe or architecture.
    """
    if lock.arch != recipe.arch:
        raise InvalidInput(f"the lock is for {lock.arch}, the image is for {recipe.arch}")
    asked = [name.partition("=")[0] for name in recipe.all_packages]
    lacking = [name for name in asked if name not in lock.packages]
    lacking += [name for name in recipe.grub_packages if name not in lock.boot_loader]
    if lacking:
        raise InvalidInput(
            f"the lock has no version of {', '.join(lacking[:10])}",
            hint="the recipe has changed since: write the lock again, with bough image lock",
        )


def has_versions(image: ImageManifest, lock: PackageLock) -> bool:
    """Return whether all versions in `image` equal the lock's versions."""
    installed = image.packages.items() <= lock.packages.items()
    return installed and (not image.boot_loader or image.boot_loader == lock.boot_loader)


def check_same(image: ImageManifest, recipe: Recipe, lock: PackageLock) -> None:
    """Check that the built image is the image that the lock names.

    Raises:
        BuildFailed: the image differs. Nothing is kept.
    """
    if not has_versions(image, lock):
        wrong = sorted(dict(image.packages.items() - lock.packages.items()))
        raise BuildFailed(
            f"the image {recipe.label} has other packages than the lock: {', '.join(wrong[:10])}",
            hint="please report this: apt was allowed these versions only",
            image=recipe.label,
        )
    if lock.recipe == recipe.digest() and lock.digest not in (None, image.digest):
        raise BuildFailed(
            f"the image {recipe.label} has the packages of the lock but another digest: "
            f"{image.digest[:12]}, not {str(lock.digest)[:12]}",
            hint="a package may create new data at each installation; without its lines recipe and digest "
            "the lock names versions only",
            image=recipe.label,
        )
