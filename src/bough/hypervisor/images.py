"""Images: built, imported, listed, deleted."""

from __future__ import annotations

import asyncio
import os
from typing import Any

from bough.errors import InUse, InvalidInput
from bough.hypervisor.making import Making
from bough.images.build import BuildOptions, build, build_recipe
from bough.images.catalogue import Catalogue
from bough.images.confined import Confinement
from bough.images.download import sweep as sweep_downloads
from bough.images.imports import ImportRequest, import_image
from bough.images.layers import flatten, layer_key, layer_spec, packages_recipe, parse_packages
from bough.images.locks import has_versions, lock_image
from bough.images.pull import fetch_catalogue
from bough.images.recipes import LABELS
from bough.images.store import ImageManifest, split_label
from bough.machines.disks import disk_chain
from bough.machines.layer import make_layer
from bough.machines.plan import check_arch, host_arch
from bough.progress import Report
from bough.qemu.probe import find_qemu, probe_jail
from bough.spec import PackageLock, RecipeSpec, parse_architecture, parse_recipe


class Images(Making):
    async def update_catalogue(self, source: str | None, *, force: bool, report: Report) -> Catalogue:
        """The one at `source`, or where the last one came from. Nothing changes unless all of it is right."""
        address = source or os.environ.get("BOUGH_CATALOGUE") or self.catalogues.source
        if address is None:
            raise InvalidInput(
                "no address of a catalogue is known",
                hint="--from URL, once; or BOUGH_CATALOGUE in the service's environment",
            )
        text = await fetch_catalogue(address, self.home, report)
        return self.catalogues.replace(text, address, force=force)

    async def build_image(
        self, reference: str, *, arch: str | None, how: BuildOptions, report: Report
    ) -> ImageManifest:
        reference, own = split_label(reference)
        arch = parse_architecture(arch) if arch else own or host_arch()
        with self._half_made():
            return await build(
                self.images,
                reference,
                arch=arch,
                progress=report,
                rebuild=how.rebuild,
                mirrors=how.mirrors,
                lock=how.lock,
            )

    async def build_recipe(
        self, data: dict[str, Any], *, label: str, arch: str | None, how: BuildOptions, report: Report
    ) -> ImageManifest:
        """The image that a recipe (see bough.spec.RecipeSpec) describes, from as much as is here already.

        Args:
            label: of a recipe that has none.
            arch: instead of the recipe's.

        Raises:
            InvalidSpec, BuildFailed (with what its command printed), and as `create` and `build_image`.
        """
        recipe = parse_recipe(data)
        label = recipe.label or label
        if label in LABELS:
            raise InvalidInput(f"{label} is bough's own", hint='give it another name: label = "web"')
        lock = how.lock
        base_label, own = split_label(recipe.base)
        wanted = parse_architecture(arch) if arch else recipe.arch
        if own is not None and wanted not in (own, None):
            raise InvalidInput(f"{recipe.base} is not made for {wanted}", hint=f'base = "{base_label}"')
        wanted = wanted or own
        check_arch(wanted or host_arch())
        if recipe.is_debian:
            base = await build_recipe(
                self.images,
                packages_recipe(recipe, label, wanted or host_arch()),
                label=None,
                progress=report,
                mirrors=how.mirrors,
                lock=lock,
                rebuild=how.rebuild,
            )
        else:
            base = await self.image(lock.base if lock and lock.base else base_label, wanted, report)
        if not recipe.needs_machine:
            self.images.label(base.digest, label)
            return base
        key = layer_key(base.digest, recipe.model_dump(mode="json", exclude={"label", "arch"}))
        known = None
        if not how.rebuild:
            known = self.images.find_recipe(key, lambda image: lock is None or has_versions(image, lock))
        if known is not None:
            self.images.label(known.digest, label)
            return known
        with self._using(base.digest):
            return await self._build_layer(recipe, base, key, label, lock, report)

    async def _build_layer(
        self,
        recipe: RecipeSpec,
        base: ImageManifest,
        key: str,
        label: str,
        lock: PackageLock | None,
        report: Report,
    ) -> ImageManifest:
        spec = layer_spec(recipe, base, lock)
        machine = await self.create(spec, name=f"build-{key[:12]}", force=True, report=report)
        try:
            disk, output = await make_layer(machine, recipe, base, label, report)
            jail = await probe_jail(find_qemu(base.arch), self.home)
            return await flatten(
                self.images,
                base,
                disk_chain(machine.record.disks[disk], machine.paths, self.home),
                recipe.size or base.size_bytes,
                key=key,
                label=label,
                packages=parse_packages(output),
                confinement=Confinement(jail),
                report=report,
            )
        finally:
            await asyncio.shield(self.delete(machine, force=True))

    def lock_image(self, reference: str) -> dict[str, Any]:
        return lock_image(self.images, self.images.resolve(reference)).model_dump(mode="json")

    async def import_image(self, request: dict[str, Any], *, report: Report) -> ImageManifest:
        """See bough.images.imports; `request` is that of the API."""
        arch = request.pop("arch")
        jail = await probe_jail(find_qemu(host_arch()), self.home)
        asked = ImportRequest(
            arch=parse_architecture(arch) if arch else host_arch(),
            arch_given=arch is not None,
            label=request.pop("name"),
            checksum=request.pop("sha256"),
            most_bytes=request.pop("max_size"),
            **request,
        )
        with self._half_made():
            return await import_image(self.images, asked, Confinement(jail), report)

    def describe_images(self) -> list[dict[str, Any]]:
        users = self.image_users()
        return [
            {
                **entry.manifest.model_dump(mode="json"),
                "labels": list(entry.labels),
                "disk_bytes": entry.bytes_on_disk,
                "used_by": users.get(entry.manifest.digest, []),
            }
            for entry in self.images.entries()
        ]

    async def delete_image(self, reference: str) -> None:
        await self._see_off()
        await self.ahead.clear()
        manifest = self.images.resolve(reference)
        self._drop_ready(m for m in self.snapshots.store.ready() if m.image_digest == manifest.digest)
        used_by = self.image_users().get(manifest.digest)
        if used_by:
            raise InUse(
                f"image {reference} is used by {', '.join(used_by[:5])}",
                hint="delete those first",
                used_by=used_by,
            )
        self.images.delete(reference)

    async def prune_images(self) -> dict[str, Any]:
        await self._see_off()
        await self.ahead.clear()
        sweep_downloads(self.home.downloads, older_than_s=0)
        labelled = {entry.manifest.digest for entry in self.images.entries() if entry.labels}
        self._drop_ready(m for m in self.snapshots.store.ready() if m.image_digest not in labelled)
        deleted, freed_bytes = self.images.prune(used=set(self.image_users()))
        return {"deleted": deleted, "freed_bytes": freed_bytes}
