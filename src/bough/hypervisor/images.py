"""Images: build, import, pull, list, delete."""

from __future__ import annotations

import os
from typing import Any

from bough.errors import InUse, InvalidInput
from bough.forks.loaded import LoadedForks
from bough.hypervisor.creation import Creation
from bough.hypervisor.half_made import HalfMade
from bough.hypervisor.image_source import ImageSource
from bough.hypervisor.import_guests import ImportGuests
from bough.hypervisor.inventory import Inventory
from bough.hypervisor.lifetimes import Lifetimes
from bough.hypervisor.snapshot_keeper import SnapshotKeeper
from bough.images.build import BuildOptions, build, build_recipe
from bough.images.catalogue import Catalogue, Catalogues
from bough.images.confined import Confinement
from bough.images.download import sweep as sweep_downloads
from bough.images.import_request import ImportRequest
from bough.images.imports import import_image
from bough.images.layers import (
    flatten,
    layer_container,
    layer_key,
    layer_spec,
    packages_recipe,
    parse_packages,
)
from bough.images.locks import has_versions, lock_image
from bough.images.pull import fetch_catalogue
from bough.images.recipes import LABELS
from bough.images.store import ImageManifest, ImageStore, split_label
from bough.machines.disks.creation import disk_chain
from bough.machines.plan import check_arch, host_arch
from bough.machines.recipe_build import build_in_machine
from bough.paths import Home
from bough.progress import Report
from bough.qemu.binary import find_qemu
from bough.qemu.jail_probe import probe_jail
from bough.spec import PackageLock, RecipeSpec, parse_architecture, parse_recipe
from bough.tasks import finish


class Images:
    """Use cases of images.

    Attributes:
        store: the images of this home. catalogues: the images to pull.
    """

    def __init__(
        self,
        home: Home,
        source: ImageSource,
        store: ImageStore,
        catalogues: Catalogues,
        creation: Creation,
        inventory: Inventory,
        lifetimes: Lifetimes,
        keeper: SnapshotKeeper,
        loaded: LoadedForks,
        half_made: HalfMade,
        import_guests: ImportGuests,
    ) -> None:
        self.store = store
        self.catalogues = catalogues
        self._home = home
        self._source = source
        self._creation = creation
        self._inventory = inventory
        self._lifetimes = lifetimes
        self._keeper = keeper
        self._loaded = loaded
        self._half_made = half_made
        self._import_guests = import_guests

    async def pull(self, reference: str, **options: Any) -> ImageManifest:
        """Download an image of the catalogue; see ImageSource.pull."""
        return await self._source.pull(reference, **options)

    async def update_catalogue(self, source: str | None, *, force: bool, report: Report) -> Catalogue:
        """Replace the catalogue by the one at `source`, or at the last address. Every entry must be valid."""
        address = source or os.environ.get("BOUGH_CATALOGUE") or self.catalogues.source
        if address is None:
            raise InvalidInput(
                "the address of a catalogue is not known",
                hint="give it once: --from URL, or BOUGH_CATALOGUE in the service's environment",
            )
        text = await fetch_catalogue(address, self._home, report)
        return self.catalogues.replace(text, address, force=force)

    async def build(
        self, reference: str, *, arch: str | None, how: BuildOptions, report: Report
    ) -> ImageManifest:
        reference, own = split_label(reference)
        arch = parse_architecture(arch) if arch else own or host_arch()
        with self._half_made.working():
            return await build(
                self.store,
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
        """Build the image of a recipe (bough.spec.RecipeSpec). Existing parts are reused.

        Args:
            label: for a recipe without one.
            arch: overrides the recipe's.

        Raises:
            InvalidSpec, BuildFailed (with the output of its command), and as `create` and `build_image`.
        """
        recipe = parse_recipe(data)
        label = recipe.label or label
        if label in LABELS:
            raise InvalidInput(
                f"the label {label} belongs to bough", hint='choose another one: label = "web"'
            )
        lock = how.lock
        base_label, own = split_label(recipe.base)
        wanted = parse_architecture(arch) if arch else recipe.arch
        if own is not None and wanted not in (own, None):
            raise InvalidInput(f"{recipe.base} is not an image for {wanted}", hint=f'base = "{base_label}"')
        wanted = wanted or own
        check_arch(wanted or host_arch())
        if recipe.is_debian:
            base = await build_recipe(
                self.store,
                packages_recipe(recipe, label, wanted or host_arch()),
                label=None,
                progress=report,
                mirrors=how.mirrors,
                lock=lock,
                rebuild=how.rebuild,
            )
        else:
            base = await self._source.find(lock.base if lock and lock.base else base_label, wanted, report)
        if not recipe.needs_machine:
            self.store.label(base.digest, label)
            return base
        key = layer_key(base.digest, recipe.model_dump(mode="json", exclude={"label", "arch"}))
        known = None
        if not how.rebuild:
            known = self.store.find_recipe(key, lambda image: lock is None or has_versions(image, lock))
        if known is not None:
            self.store.label(known.digest, label)
            return known
        with self._source.using(base.digest):
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
        machine = await self._creation.create(spec, name=f"build-{key[:12]}", force=True, report=report)
        try:
            disk, output = await build_in_machine(machine, recipe, base, label, report)
            jail = await probe_jail(find_qemu(base.arch), self._home)
            return await flatten(
                self.store,
                base,
                disk_chain(machine.record.disks[disk], machine.paths, self._home),
                recipe.size or base.size_bytes,
                container=layer_container(recipe, base),
                key=key,
                label=label,
                packages=parse_packages(output),
                confinement=Confinement(jail),
                report=report,
            )
        finally:
            await finish(self._lifetimes.delete(machine, force=True))

    def lock(self, reference: str) -> dict[str, Any]:
        return lock_image(self.store, self.store.resolve(reference)).model_dump(mode="json")

    async def import_file(self, request: dict[str, Any], *, report: Report) -> ImageManifest:
        """Import a disk file; see bough.images.imports. `request` is the API's."""
        arch = request.pop("arch")
        jail = await probe_jail(find_qemu(host_arch()), self._home)
        asked = ImportRequest(
            arch=parse_architecture(arch) if arch else host_arch(),
            arch_given=arch is not None,
            label=request.pop("name"),
            checksum=request.pop("sha256"),
            most_bytes=request.pop("max_size"),
            **request,
        )
        with self._half_made.working():
            guests = self._import_guests.provide
            return await import_image(self.store, asked, Confinement(jail), report, guests)

    def describe(self) -> list[dict[str, Any]]:
        users = self.users()
        return [
            {
                **entry.manifest.model_dump(mode="json"),
                "labels": list(entry.labels),
                "disk_bytes": entry.bytes_on_disk,
                "used_by": users.get(entry.manifest.digest, []),
            }
            for entry in self.store.entries()
        ]

    async def delete(self, reference: str) -> None:
        await self._lifetimes.wait_departed()
        await self._loaded.clear()
        manifest = self.store.resolve(reference)
        self._keeper.drop_all(
            m for m in self._keeper.tree.store.booted() if m.image_digest == manifest.digest
        )
        used_by = self.users().get(manifest.digest)
        if used_by:
            raise InUse(
                f"image {reference} is used by {', '.join(used_by[:5])}",
                hint="delete those first: bough delete NAME",
                used_by=used_by,
            )
        self.store.delete(reference)

    async def prune(self) -> dict[str, Any]:
        await self._lifetimes.wait_departed()
        await self._loaded.clear()
        sweep_downloads(self._home.downloads, older_than_s=0)
        self._source.sweep_containers()
        labelled = {entry.manifest.digest for entry in self.store.entries() if entry.labels}
        self._keeper.drop_all(m for m in self._keeper.tree.store.booted() if m.image_digest not in labelled)
        deleted, freed_bytes = self.store.prune(used=set(self.users()))
        return {"deleted": deleted, "freed_bytes": freed_bytes}

    def users(self) -> dict[str, list[str]]:
        """Return digest -> names of the machines and snapshots that need the image."""
        creating = self._source.in_creation
        users: dict[str, list[str]] = {digest: ["(a machine being created)"] for digest in creating}
        for machine in self._inventory:
            if self._loaded.has(machine):
                continue
            for digest in {machine.record.image_digest, *machine.record.media.digests}:
                name = "(standby machines: bough standby)" if machine.record.standby else machine.name
                users.setdefault(digest, []).append(name)
        for digest, user in self._keeper.tree.store.images_in_use():
            users.setdefault(digest, []).append(user)
        return users
