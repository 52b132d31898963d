"""Take an image out of an artifact of a registry into the store."""

from __future__ import annotations

import asyncio
import platform
import secrets
import shutil

from bough.artifacts.document import OWN_TYPES
from bough.errors import NotFound
from bough.images.artifact import add_images, check_wanted, parse_images
from bough.images.confined import Confinement
from bough.images.oci.artifacts import RemoteArtifact, check_kind, find_artifact
from bough.images.oci.kept_layouts import KeptLayouts
from bough.images.oci.manifest import ContainerManifest
from bough.images.oci.skopeo import Skopeo
from bough.images.store import ImageManifest, ImageStore
from bough.progress import Report
from bough.qemu.binary import find_qemu
from bough.qemu.jail_probe import probe_jail
from bough.spec.container_name import ContainerName
from bough.tasks import finish


class ImageArtifacts:
    """Makes an image in the store from an artifact of bough; an ArtifactReader of images/oci/pull.py."""

    def __init__(self, store: ImageStore, kept: KeptLayouts) -> None:
        self._store = store
        self._kept = kept

    def reads(self, manifest: ContainerManifest) -> bool:
        return manifest.config.media_type.startswith(OWN_TYPES)

    async def pull(
        self, name: ContainerName, manifest: ContainerManifest, arch: str, label: str, report: Report
    ) -> ImageManifest:
        """Return the image of an artifact, stored under `label`.

        The chunks are fetched only if the store lacks the image.

        Args:
            arch: the architecture that the image must have.

        Raises:
            InvalidInput: the artifact is a machine. BadImage, DownloadFailed, NoSpace, HostLacks
        """
        store = self._store
        skopeo = Skopeo(name, arch, store.home.incoming)
        found = await find_artifact(name, skopeo, manifest.digest)
        artifact = check_kind(found, "image", name)
        images = parse_images(artifact.description)
        check_wanted(images[0], arch)
        if all(_has(store, image) for image in images):
            store.label(images[0].digest, label)
            return store.resolve(images[0].digest)
        origin = {"source": name.at(artifact.digest), "format": "artifact"}
        images = [image.model_copy(update={"label": label, "origin": origin}) for image in images]
        await self._fetch(artifact, images, report)
        return store.resolve(images[0].digest)

    async def _fetch(self, artifact: RemoteArtifact, images: list[ImageManifest], report: Report) -> None:
        home = self._store.home
        confinement = Confinement(await probe_jail(find_qemu(platform.machine()), home))
        work = home.incoming / f"artifact-{secrets.token_hex(6)}"
        work.mkdir(mode=0o711)
        documents = artifact.manifest, artifact.description
        try:
            async with artifact.fetched(self._kept, report) as blobs:
                await add_images(self._store, images, blobs, *documents, work, confinement, report)
        finally:
            await finish(asyncio.to_thread(shutil.rmtree, work, True))


def _has(store: ImageStore, image: ImageManifest) -> bool:
    try:
        return store.resolve(image.digest).digest == image.digest
    except NotFound:
        return False
