"""Pull a container image, and make it an image of machines.

    name  ->  manifest and configuration  ->  layers (downloads/)  ->  tree  ->  disk  ->  store

Half-made files are below incoming/. Of a broken pull, the complete layers stay below downloads/.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from bough.errors import BadImage, BuildFailed, NotFound
from bough.images.bootstrap import check_programs, check_subordinate_ids, remove_build
from bough.images.build_watch import BuildWatch
from bough.images.disk import DiskIdentity, digest_image
from bough.images.namespace import start_inside
from bough.images.oci.boot_kit.store import BootKit
from bough.images.oci.config import ImageConfig, read_config
from bough.images.oci.disk import ROOT_PARTITION, ROOT_SCRIPT, finish_disk, prepare_root, root_environment
from bough.images.oci.kept_layouts import KeptLayouts
from bough.images.oci.layers import LayerBlob, UnpackedTree, apply_layers
from bough.images.oci.manifest import ContainerManifest, check_image
from bough.images.oci.skopeo import STALL_S
from bough.images.oci.source import blob_path, open_source, stamp_file
from bough.images.platforms import PLATFORMS
from bough.images.store import ImageManifest, ImageStore
from bough.progress import Progress, Report, notice
from bough.spec.container_name import ContainerName
from bough.storage import no_space_is_told, sync_directory, sync_file
from bough.tasks import finish
from bough.units import format_size

#: The form of a disk made from layers. Increase after a change that gives another disk.
_FORM = 1
_PROGRAMS = {"mke2fs": "e2fsprogs", "sfdisk": "fdisk", "mmdebstrap": "mmdebstrap", "bwrap": "bubblewrap"}


class ArtifactReader(Protocol):
    """Makes an image from an artifact in a registry that is no container image."""

    def reads(self, manifest: ContainerManifest) -> bool: ...

    async def pull(
        self, name: ContainerName, manifest: ContainerManifest, arch: str, label: str, report: Report
    ) -> ImageManifest: ...


@dataclass(frozen=True)
class _Wanted:
    """What one pull is to make."""

    name: ContainerName
    arch: str
    label: str
    manifest: ContainerManifest
    kit: BootKit
    stamp: str | None

    @property
    def recipe(self) -> str:
        """Return the digest of all that decides about the disk."""
        parts = [_FORM, self.manifest.digest, self.kit.digest]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


class Kits(Protocol):
    """The boot kits; `boot_kit.store.BootKitStore` is an implementation."""

    async def provide(self, arch: str, report: Report) -> BootKit: ...


class ContainerPull:
    """Use case: an image in the store from the name of a container image.

    Args:
        artifacts: readers of artifacts that are no container images.
        kept: what broken pulls have received; default: below the home's downloads/.
        stall_s: the longest wait for a registry that sends nothing.
    """

    def __init__(
        self,
        store: ImageStore,
        kits: Kits,
        artifacts: Sequence[ArtifactReader] = (),
        *,
        kept: KeptLayouts | None = None,
        stall_s: float = STALL_S,
    ) -> None:
        self.kept = kept or KeptLayouts(store.home.downloads)
        self._store = store
        self._kits = kits
        self._artifacts = artifacts
        self._stall_s = stall_s
        #: Name of a local image -> stamp of its file at the last pull.
        self._stamps: dict[str, str | None] = {}

    def is_current(self, name: ContainerName, image: ImageManifest) -> bool:
        """Return whether the image in the store is good for another use of the name.

        An image from a registry is, until a pull. An image from a file is, until the file changes.
        """
        stamp = stamp_file(name)
        return stamp is None or stamp in (self._stamps.get(str(name)), (image.origin or {}).get("stamp"))

    async def pull(
        self, name: ContainerName, *, arch: str, label: str | None = None, report: Report
    ) -> ImageManifest:
        """Return the image, stored under `label` or the full name.

        The registry is asked for the name's digest in any case. An image with this digest is not made again.
        After an error or a cancellation, nothing is left except for complete layers below downloads/.

        Raises:
            NotFound: no such repository, tag or file, or none for `arch`.
            DownloadFailed: the registry does not send the image.
            BadImage: the image is damaged, hostile, unsigned, or no container image.
            HostLacks: skopeo or another program is missing. BuildFailed, NoSpace, InvalidInput
        """
        work = self._store.home.incoming / f"container-{secrets.token_hex(6)}"
        work.mkdir(mode=0o711)
        try:
            with no_space_is_told(f"the image {name}", self._store.home.root):
                stamp = stamp_file(name)
                image = await self._pull(name, arch, label or str(name), stamp, work, report)
                self._stamps[str(name)] = stamp
                return image
        finally:
            await finish(asyncio.to_thread(remove_build, work))

    async def _pull(
        self, name: ContainerName, arch: str, label: str, stamp: str | None, work: Path, report: Report
    ) -> ImageManifest:
        source = open_source(name, arch, work, report, stall_s=self._stall_s)
        report(Progress(f"looking up {name}"))
        manifest = await source.read_manifest()
        for reader in self._artifacts:
            if reader.reads(manifest):
                return await reader.pull(name, manifest, arch, label, report)
        check_image(manifest, str(name))
        check_programs(_PROGRAMS, "container images")
        check_subordinate_ids()
        config = read_config(await source.read_config(manifest), str(name), manifest.digest)
        check_fit(config, manifest, arch, str(name))
        wanted = _Wanted(name, arch, label, manifest, await self._kits.provide(arch, report), stamp)
        async with self.kept.hold(manifest.digest, str(name), report) as kept:
            known = self._store.find_recipe(wanted.recipe)
            if known is not None:
                self._store.label(known.digest, label)
                return known
            layout = await source.fetch(manifest, kept)
            return await self._make(wanted, config, layout, work, report)

    async def _make(
        self, wanted: _Wanted, config: ImageConfig, layout: Path, work: Path, report: Report
    ) -> ImageManifest:
        name = str(wanted.name)
        layers = [
            LayerBlob(blob_path(layout, layer.digest), layer.digest, layer.size, diff_id)
            for layer, diff_id in zip(wanted.manifest.layers, config.layers, strict=True)
        ]
        tree = await apply_layers(work, layers, image=name, report=report)
        for note in (*config.notes, *tree.notes):
            report(notice(f"{name}: {note}"))
        report(Progress(f"writing the disk of {name}"))
        size_bytes = await self._write_disk(wanted, config, tree, work, report)
        made = self._store.home.incoming / f"image-{secrets.token_hex(6)}"
        made.mkdir(mode=0o711)
        try:
            image = await finish(asyncio.to_thread(_finish, work, made, wanted, config, size_bytes))
            self._store.add(made, image, wanted.label)
        finally:
            await finish(asyncio.to_thread(remove_build, made))
        return self._store.resolve(image.digest)

    async def _write_disk(
        self, wanted: _Wanted, config: ImageConfig, tree: UnpackedTree, work: Path, report: Report
    ) -> int:
        """Write work/disk.raw and return its size in bytes."""
        identity = DiskIdentity.derive(wanted.recipe)
        label = f"the disk of {wanted.name}"
        await finish(asyncio.to_thread(_prepare, work))
        environment = root_environment(wanted.kit, identity, config.created_s)
        process = await start_inside(work, ("sh", f"./{ROOT_SCRIPT.name}", tree.path.name), environment)
        await BuildWatch(label, report, noun="", needed=format_size(2 * tree.content_bytes)).follow(
            process, work
        )
        try:
            return await finish(asyncio.to_thread(finish_disk, work, wanted.kit, identity))
        except (subprocess.CalledProcessError, ValueError) as error:
            output = str(getattr(error, "stderr", error))[-2000:]
            raise BuildFailed(
                f"{label} could not be made bootable", image=str(wanted.name), output=output
            ) from error


def check_fit(config: ImageConfig, manifest: ContainerManifest, arch: str, name: str) -> None:
    """Check that manifest and configuration describe the same image, for the asked architecture.

    Raises:
        NotFound: the image is for another architecture. BadImage
    """
    if config.arch and config.arch != arch:
        raise NotFound(
            f"there is no {name} for {arch}", hint=f"use --arch {config.arch}", kind="image", arch=config.arch
        )
    if len(config.layers) != len(manifest.layers):
        raise BadImage(
            f"{name} is damaged: its manifest has {len(manifest.layers)} layers, "
            f"its configuration {len(config.layers)}"
        )


def _prepare(work: Path) -> None:
    """Make the directory of the results, which subordinate ids write to."""
    out = work / "out"
    out.mkdir()
    out.chmod(0o777)
    prepare_root(work)


def _finish(work: Path, made: Path, wanted: _Wanted, config: ImageConfig, size_bytes: int) -> ImageManifest:
    """Move the disk to `made`, on stable storage, and return its manifest."""
    disk = made / "disk.raw"
    (work / disk.name).rename(disk)
    sync_file(disk)
    sync_directory(made)
    lasting: dict[str, Any] = {
        "os": "linux",
        "version": wanted.name.tag,
        "arch": wanted.arch,
        "firmware": list(PLATFORMS[wanted.arch].firmware),
        "size_bytes": size_bytes,
        "root_partition": ROOT_PARTITION,
        "agent": "disk",
        "container": config.container.model_dump(mode="json"),
    }
    origin = {"source": str(wanted.name), "stamp": wanted.stamp}
    return ImageManifest.model_validate(
        lasting
        | {
            "digest": digest_image(disk, lasting),
            "created": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "label": wanted.label,
            "recipe": wanted.recipe,
            "boot_loader": wanted.kit.packages,
            "origin": {key: value for key, value in origin.items() if value is not None},
        }
    )
