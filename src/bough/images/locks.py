"""Locks of images: what was installed, written down, and held against what is to be built or was built."""

from __future__ import annotations

from typing import Any

from bough.errors import BuildFailed, InvalidInput
from bough.images.recipes import Recipe
from bough.images.store import ImageManifest, ImageStore
from bough.spec import PackageLock


def lock_image(store: ImageStore, image: ImageManifest) -> PackageLock:
    """The versions of everything in `image`.

    Raises:
        InvalidInput: bough did not make it from Debian's packages.
    """
    if not image.packages:
        raise InvalidInput(
            f"it is not known which packages are in {image.label}",
            hint="a lock is of images that bough built from Debian's packages",
        )
    below: dict[str, Any] = image.origin or {}
    if "base" not in below:
        if not image.boot_loader:
            raise InvalidInput(
                f"{image.label} was built by a bough that did not note what its boot loader is made of",
                hint=f"bough image build --rebuild {image.label}",
            )
        return PackageLock(
            arch=image.arch,
            recipe=image.recipe,
            digest=image.digest,
            packages=image.packages,
            boot_loader=image.boot_loader,
        )
    base = next((entry.manifest for entry in store.entries() if entry.manifest.digest == below["base"]), None)
    if base is None:
        raise InvalidInput(f"the image that {image.label} is upon is not here any more")
    if base.boot_loader:  # from packages, with a layer upon it
        packages = base.packages | image.packages
        return PackageLock(
            arch=image.arch,
            recipe=base.recipe,
            # Where the layer upgraded something, the image below it becomes another one.
            digest=base.digest if base.packages.items() <= packages.items() else None,
            packages=packages,
            boot_loader=base.boot_loader,
        )
    return PackageLock(arch=image.arch, base=base.digest, packages=image.packages)


def check_lock(lock: PackageLock, recipe: Recipe) -> None:
    """Raises InvalidInput: the lock is not one of this recipe."""
    if lock.arch != recipe.arch:
        raise InvalidInput(f"the lock is of {lock.arch}, the image is for {recipe.arch}")
    asked = [name.partition("=")[0] for name in recipe.all_packages]
    lacking = [name for name in asked if name not in lock.packages]
    lacking += [name for name in recipe.grub_packages if name not in lock.boot_loader]
    if lacking:
        raise InvalidInput(
            f"the lock has no version of {', '.join(lacking[:10])}",
            hint="the recipe has changed since: write the lock again, with bough image lock",
        )


def has_versions(image: ImageManifest, lock: PackageLock) -> bool:
    """Whether everything in `image` is as the lock says."""
    installed = image.packages.items() <= lock.packages.items()
    return installed and (not image.boot_loader or image.boot_loader == lock.boot_loader)


def check_same(image: ImageManifest, recipe: Recipe, lock: PackageLock) -> None:
    """What was built is what the lock names.

    Raises:
        BuildFailed: it is not. Nothing of it is kept.
    """
    if not has_versions(image, lock):
        wrong = sorted(dict(image.packages.items() - lock.packages.items()))
        raise BuildFailed(
            f"the image {recipe.label} has other packages than the lock: {', '.join(wrong[:10])}",
            hint="please report this: apt was told of these versions alone",
            image=recipe.label,
        )
    if lock.recipe == recipe.digest() and lock.digest not in (None, image.digest):
        raise BuildFailed(
            f"the image {recipe.label} has the packages of the lock and is another one all the same: "
            f"{image.digest[:12]}, not {str(lock.digest)[:12]}",
            hint="a package that is made anew at each installation? Without the lines recipe and digest "
            "the lock asks for versions alone",
            image=recipe.label,
        )
