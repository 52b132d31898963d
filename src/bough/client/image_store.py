"""The Python API's images: build, import, pull, delete, and the catalogue of published images."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bough.client.connection import Connection
    from bough.contract.answers import ImageInfo, Pushed
    from bough.progress import Report

_DELETE_TIMEOUT_S = 120.0


class ImageStore:
    """The images of one home. `Hypervisor` has these methods."""

    def __init__(self, api: Connection) -> None:
        self._api = api

    def images(self) -> list[ImageInfo]:
        from bough.contract.answers import ImageInfo
        from bough.contract.images import ListImages

        return [ImageInfo.from_dict(data) for data in self._api.send(ListImages())]

    def image(self, reference: str, *, arch: str | None = None) -> ImageInfo:
        """Return one image: by label, or by the beginning of its digest. Raises NotFound, Conflict."""
        from bough.client.spec_files import resolve_image
        from bough.contract.answers import ImageInfo
        from bough.contract.images import GetImage

        request = GetImage(reference=resolve_image(reference), arch=arch)
        return ImageInfo.from_dict(self._api.send(request))

    def build_image(
        self,
        reference: str,
        *,
        arch: str | None = None,
        rebuild: bool = False,
        mirror: str | None = None,
        security_mirror: str | None = None,
        lock: dict[str, Any] | None = None,
        timeout: float | None = None,
        progress: Report | None = None,
    ) -> ImageInfo:
        """Build "debian:12" and the like from packages, unless the store has the image. `rebuild` builds
        anyway.

        Args:
            security_mirror: "none" takes no security updates.
            lock: versions of packages, from `lock_image`.

        Raises:
            NotFound: no such recipe; BuildFailed, HostLacks, NoSpace: nothing half-made is left.
        """
        from bough.contract.answers import ImageInfo
        from bough.contract.images import BuildImage

        request = BuildImage(
            ref=reference,
            arch=arch,
            rebuild=rebuild,
            mirror=mirror,
            security_mirror=security_mirror,
            lock=lock,
        )
        return ImageInfo.from_dict(self._api.send_long(request, timeout=timeout, progress=progress))

    def build_recipe(
        self,
        recipe: dict[str, Any],
        *,
        label: str,
        arch: str | None = None,
        rebuild: bool = False,
        mirror: str | None = None,
        security_mirror: str | None = None,
        lock: dict[str, Any] | None = None,
        timeout: float | None = None,
        progress: Report | None = None,
    ) -> ImageInfo:
        """Build the image of a recipe: a base, packages, files, users, commands (docs/images.md).

        Args:
            arch: instead of the recipe's, or the host's.

        Raises:
            InvalidSpec: with every problem; BuildFailed: with the output of the failed command. Nothing is
                kept.
        """
        from bough.client.spec_files import resolve_recipe
        from bough.contract.answers import ImageInfo
        from bough.contract.images import BuildRecipe

        request = BuildRecipe(
            recipe=resolve_recipe(recipe),
            label=label,
            arch=arch,
            rebuild=rebuild,
            mirror=mirror,
            security_mirror=security_mirror,
            lock=lock,
        )
        return ImageInfo.from_dict(self._api.send_long(request, timeout=timeout, progress=progress))

    def build_dockerfile(
        self,
        context: str | os.PathLike[str] = ".",
        *,
        file: str | os.PathLike[str] | None = None,
        label: str | None = None,
        build_args: Mapping[str, str] | None = None,
        target: str | None = None,
        arch: str | None = None,
        rebuild: bool = False,
        timeout: float | None = None,
        progress: Report | None = None,
    ) -> ImageInfo:
        """Build a Dockerfile with the caller's buildah, and make the result an image of machines.

        Args:
            context: the directory whose files the Dockerfile copies.
            file: default: Containerfile or Dockerfile of the context.
            label: default: made from the directory's name.
            rebuild: run steps again that are in buildah's cache.
            timeout: seconds for the part after buildah.

        Raises:
            InvalidInput, HostLacks: buildah is not installed; BuildFailed: with the end of its output; and as
            `pull_image`.
        """
        from pathlib import Path

        from bough.client.dockerfile import Dockerfile, built_archive
        from bough.spec import parse_architecture

        dockerfile = Dockerfile(
            Path(context).expanduser(),
            os.fspath(file) if file is not None else None,
            build_args or {},
            target,
            parse_architecture(arch) if arch else None,
            rebuild,
        )
        label = label or dockerfile.default_label()
        with built_archive(dockerfile, label, progress) as archive:
            return self.pull_image(
                f"docker-archive:{archive}", arch=arch, label=label, timeout=timeout, progress=progress
            )

    def lock_image(self, reference: str) -> dict[str, Any]:
        """Return the versions of all packages in an image, for `lock` of a later build."""
        from bough.client.spec_files import resolve_image
        from bough.contract.images import LockImage

        return dict(self._api.send(LockImage(reference=resolve_image(reference))))

    def import_image(
        self,
        source: str | os.PathLike[str],
        *,
        name: str | None = None,
        timeout: float | None = None,
        progress: Report | None = None,
        **more: Any,
    ) -> ImageInfo:
        """Import a disk image: a file, or an http(s) address; see `bough image import --help`.

        Args:
            more: format, arch, firmware, sha256, os, version, disk, max_size (bytes), cloud_init, agent,
                disk_bus, nic_model, agent_port, root.
                `agent` says whether the disk is of a machine with bough's agent. bough's own exports state
                this.

        Raises:
            BadImage, DownloadFailed, NotFound, NoSpace: nothing is left except the part of a download that
                can be resumed.
        """
        from bough.contract.answers import ImageInfo
        from bough.contract.images import ImportImage

        place = os.fspath(source)
        if "://" not in place:
            place = os.path.abspath(os.path.expanduser(place))  # noqa: PTH100, PTH111 (a str stays one)
        request = ImportImage(source=place, name=name, **more)
        return ImageInfo.from_dict(self._api.send_long(request, timeout=timeout, progress=progress))

    def pull_image(
        self,
        name: str,
        *,
        arch: str | None = None,
        label: str | None = None,
        signed: bool = True,
        timeout: float | None = None,
        progress: Report | None = None,
    ) -> ImageInfo:
        """Fetch and check an image of the catalogue, like "fedora:44", unless the store has the image. Or
        fetch a container image, like "docker://nginx" or "oci:./layout"; the registry is asked in any case.

        Args:
            signed: check the publisher's signature, too, if there is one.

        Raises:
            NotFound: no such image; BadImage: the image is not the one that its publisher states;
                DownloadFailed.
        """
        from bough.client.spec_files import resolve_image
        from bough.contract.answers import ImageInfo
        from bough.contract.images import PullImage

        request = PullImage(ref=resolve_image(name), arch=arch, name=label, signed=signed)
        return ImageInfo.from_dict(self._api.send_long(request, timeout=timeout, progress=progress))

    def push_image(self, reference: str, target: str, *, progress: Report | None = None) -> Pushed:
        """Write an image to a registry. `pull_image` with the same name takes the image back.

        Args:
            target: a place in a registry: "docker://registry.example/team/web:1".

        Raises:
            NotFound: no such image; InvalidInput: no such place; DownloadFailed: the registry refuses the
                push, or cannot be reached; NoSpace, HostLacks.
        """
        from bough.contract.answers import Pushed
        from bough.contract.images import PushImage

        request = PushImage(ref=reference, target=target)
        return Pushed.from_dict(self._api.send_long(request, progress=progress))

    def plan_capture(
        self, address: str, *, exclude: Sequence[str] = (), size: int | None = None
    ) -> dict[str, Any]:
        """Return what `capture_image` would copy from a live host. Changes nothing there or here."""
        from bough.client.capture import ssh_connection
        from bough.contract.images import LookAtHost

        with ssh_connection(address) as control:
            request = LookAtHost(address=address, control=str(control), exclude=tuple(exclude), size=size)
            return dict(self._api.send_long(request))

    def capture_image(
        self,
        address: str,
        *,
        name: str,
        exclude: Sequence[str] = (),
        timeout: float | None = None,
        progress: Report | None = None,
        **more: Any,
    ) -> ImageInfo:
        """Make an image of a live Linux host, over ssh, as root or by sudo; see `bough image capture --help`.

        Args:
            address: ssh://[user@]host[:port].
            exclude: patterns of rsync(1).
            more: size (bytes of the disk), bandwidth (bytes per second), before, after, quiet, scrub.

        Raises:
            InvalidInput: the host cannot be captured. DownloadFailed: the connection broke; the same call
                continues. Conflict: another capture has the name.
        """
        from bough.client.capture import ssh_connection
        from bough.contract.answers import ImageInfo
        from bough.contract.images import CaptureImage

        with ssh_connection(address) as control:
            request = CaptureImage(
                address=address, control=str(control), name=name, exclude=tuple(exclude), **more
            )
            return ImageInfo.from_dict(self._api.send_long(request, timeout=timeout, progress=progress))

    def refresh_image(
        self,
        reference: str,
        *,
        address: str | None = None,
        bandwidth: int | None = None,
        timeout: float | None = None,
        progress: Report | None = None,
    ) -> ImageInfo:
        """Make a newer image of the host that an image was made of: only what changed there is read.

        Args:
            address: where the host is now; None: where it was.
        """
        from bough.client.capture import ssh_connection
        from bough.contract.answers import ImageInfo
        from bough.contract.images import OriginOfCapture, RefreshImage

        known = self._api.send(OriginOfCapture(reference=reference))["address"]
        with ssh_connection(address or known) as control:
            request = RefreshImage(ref=reference, control=str(control), address=address, bandwidth=bandwidth)
            return ImageInfo.from_dict(self._api.send_long(request, timeout=timeout, progress=progress))

    def delete_image(self, reference: str) -> None:
        """Delete an image. Raises InUse while machines use it as a backing file."""
        from bough.client.spec_files import resolve_image
        from bough.contract.images import DeleteImage

        self._api.send(DeleteImage(reference=resolve_image(reference)), timeout=_DELETE_TIMEOUT_S)

    def prune_images(self) -> dict[str, Any]:
        """Delete the images that no machine uses and no label names: {"deleted": digests, "freed_bytes"}."""
        from bough.contract.images import PruneImages

        return dict(self._api.send(PruneImages(), timeout=None))

    def catalogue(self, words: str = "", *, arch: str | None = None) -> dict[str, Any]:
        """Return the published images, and images that are built from packages: "images", "serial", "source".

        Args:
            words: only images with all of these words in name or title.
        """
        from bough.contract.images import SearchCatalogue

        return dict(self._api.send(SearchCatalogue(words=words, arch=arch)))

    def update_catalogue(
        self, source: str | None = None, *, force: bool = False, progress: Report | None = None
    ) -> dict[str, Any]:
        """Fetch a newer catalogue, and return it. `force` accepts an older one."""
        from bough.contract.images import UpdateCatalogue

        return dict(self._api.send_long(UpdateCatalogue(source=source, force=force), progress=progress))

    def reset_catalogue(self) -> dict[str, Any]:
        """Return to the catalogue that is part of bough."""
        from bough.contract.images import ResetCatalogue

        return dict(self._api.send(ResetCatalogue()))
