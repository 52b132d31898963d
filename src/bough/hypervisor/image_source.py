"""Images for new machines: from the store, built from a known recipe, or pulled as published."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from bough.errors import NotFound
from bough.hypervisor.half_made import HalfMade
from bough.images.build import build
from bough.images.catalogue import Catalogues
from bough.images.confined import Confinement
from bough.images.oci.pull import ContainerPull
from bough.images.pull import pull_image
from bough.images.recipes import LABELS
from bough.images.store import ImageManifest, ImageStore, split_label
from bough.machines.plan import host_arch
from bough.paths import Home
from bough.progress import Report
from bough.qemu.binary import find_qemu
from bough.qemu.jail_probe import probe_jail
from bough.spec import parse_architecture
from bough.spec.container_name import ContainerName, is_container_name, parse_container_name


class ImageSource:
    """Finds or makes the image of a new machine.

    Attributes:
        in_creation: digest -> number of machines in creation from the image.
    """

    def __init__(
        self,
        home: Home,
        store: ImageStore,
        catalogues: Catalogues,
        half_made: HalfMade,
        containers: ContainerPull,
    ) -> None:
        self.in_creation: dict[str, int] = {}
        self._containers = containers
        self._home = home
        self._store = store
        self._catalogues = catalogues
        self._half_made = half_made

    async def find(self, reference: str, arch: str | None, report: Report) -> ImageManifest:
        """Return the image. If a known image was never present for this architecture, build or pull the
        image.

        Raises:
            NotFound, BuildFailed, NoSpace, HostLacks
            InvalidInput, BadImage, DownloadFailed: about a container image; see bough.images.oci.pull.
        """
        label, own = split_label(reference)
        arch = arch or own
        if is_container_name(label):
            return await self._find_container(label, arch, report)
        if arch is None and label in LABELS:
            arch = host_arch()
        try:
            return self._store.resolve(reference, arch)
        except NotFound:
            if label not in LABELS and self._store.knows(label):
                raise  # present, for another architecture
            if label not in LABELS and self._catalogues.current().knows(label):
                return await self.pull(label, arch=arch, report=report)
            with self._half_made.working():
                return await build(self._store, label, arch=arch or host_arch(), progress=report)

    async def _find_container(self, label: str, arch: str | None, report: Report) -> ImageManifest:
        name = parse_container_name(label)
        try:
            found = self._store.resolve(label, arch)
        except NotFound:
            return await self._pull_container(name, arch, None, report)
        if self._containers.is_current(name, found):
            return found
        return await self._pull_container(name, arch, None, report)

    async def _pull_container(
        self, name: ContainerName, arch: str | None, label: str | None, report: Report
    ) -> ImageManifest:
        with self._half_made.working():
            return await self._containers.pull(name, arch=arch or host_arch(), label=label, report=report)

    async def pull(
        self,
        reference: str,
        *,
        arch: str | None,
        label: str | None = None,
        signed: bool = True,
        report: Report,
    ) -> ImageManifest:
        """Download an image of the catalogue, or a container image; see bough.images.pull and .oci.pull."""
        name, own = split_label(reference)
        if is_container_name(name):
            wanted = parse_architecture(arch) if arch else own
            return await self._pull_container(parse_container_name(name), wanted, label, report)
        jail = await probe_jail(find_qemu(host_arch()), self._home)
        with self._half_made.working():
            return await pull_image(
                self._store,
                self._catalogues.current(),
                reference,
                parse_architecture(arch) if arch else host_arch(),
                Confinement(jail),
                report,
                label=label,
                signed=signed,
            )

    def sweep_containers(self) -> None:
        """Remove what broken pulls of container images left, except for running pulls."""
        self._containers.kept.sweep(older_than_s=0)

    @contextmanager
    def using(self, digest: str) -> Iterator[None]:
        """Keep the image until the block ends. The block creates a machine from the image."""
        self.in_creation[digest] = self.in_creation.get(digest, 0) + 1
        try:
            yield
        finally:
            self.in_creation[digest] -= 1
            if not self.in_creation[digest]:
                del self.in_creation[digest]
