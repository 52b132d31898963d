"""The ways to read one container image: from a registry, from a layout, or from an archive."""

from __future__ import annotations

import asyncio
import contextlib
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Protocol

from bough.errors import BadImage, NotFound
from bough.images.oci.config import MOST_BYTES, load_json
from bough.images.oci.manifest import (
    ContainerIndex,
    ContainerManifest,
    check_digest,
    read_manifest,
)
from bough.images.oci.skopeo import STALL_S, Skopeo, watch_bytes
from bough.progress import Progress, Report
from bough.spec.container_name import ContainerName
from bough.storage import check_space
from bough.tasks import end_tasks
from bough.units import MIB, format_size

_LOOK_EVERY_S = 0.25
#: Free space that a pull leaves.
_SPARE_BYTES = 256 * MIB


class Source(Protocol):
    """One container image, not yet in the store."""

    async def read_manifest(self) -> ContainerManifest:
        """Return the manifest for the machine's architecture.

        Raises:
            NotFound, DownloadFailed, BadImage
        """

    async def read_config(self, manifest: ContainerManifest) -> bytes:
        """Return the text of the configuration; its digest is the manifest's."""

    async def fetch(self, manifest: ContainerManifest, layout: Path) -> Path:
        """Return the directory with all blobs of the image: blobs/sha256/<digits>.

        Args:
            layout: an OCI layout, perhaps with some of the blobs from an earlier call.
        """


def open_source(
    name: ContainerName, arch: str, work: Path, report: Report, *, stall_s: float = STALL_S
) -> Source:
    """Return the source of an image.

    Args:
        work: a directory for large temporary files.

    Raises:
        HostLacks: skopeo is not installed. NotFound, BadImage: the file is missing, or of a wrong kind.
    """
    check_file(name)
    skopeo = Skopeo(name, arch, work, stall_s=stall_s)
    if name.transport in ("oci", "oci-archive"):
        return _Layout(name, arch, work / "layout", skopeo, report)
    return _Remote(name, arch, skopeo, report)


def check_file(name: ContainerName) -> None:
    """Check the file or directory of a local image.

    Raises:
        NotFound, BadImage
    """
    if not name.is_local:
        return
    try:
        mode = Path(name.place).stat().st_mode
    except OSError as error:
        raise NotFound(f"cannot read {name.place}: {error.strerror}", kind="image") from None
    if name.transport == "oci" and not stat.S_ISDIR(mode):
        raise BadImage(f"{name.place} is not a directory", hint=f"a file: oci-archive:{name.place}")
    if name.transport != "oci" and not stat.S_ISREG(mode):
        hint = f"a directory: oci:{name.place}" if stat.S_ISDIR(mode) else None
        raise BadImage(f"{name.place} is not a file", hint=hint)


def stamp_file(name: ContainerName) -> str | None:
    """Return a text that changes with a local image's file. None: an image in a registry, or no such file."""
    if not name.is_local:
        return None
    path = Path(name.place, "index.json") if name.transport == "oci" else Path(name.place)
    with contextlib.suppress(OSError):
        info = path.stat()
        return f"{info.st_size} {info.st_mtime_ns} {info.st_ino}"
    return None


class _Remote:
    """An image in a registry, or in an archive of Docker, which has no index."""

    def __init__(self, name: ContainerName, arch: str, skopeo: Skopeo, report: Report) -> None:
        self._name = name
        self._arch = arch
        self._skopeo = skopeo
        self._report = report

    async def read_manifest(self) -> ContainerManifest:
        name = str(self._name)
        text = await self._skopeo.read_manifest()
        if self._name.digest:
            check_digest(text, self._name.digest, f"the manifest of {name}")
        found = read_manifest(text, name)
        if isinstance(found, ContainerIndex):
            digest = found.choose(self._arch, name)
            text = await self._skopeo.read_manifest(digest)
            check_digest(text, digest, f"the manifest of {name}")
            found = read_manifest(text, name)
        if isinstance(found, ContainerIndex):
            raise BadImage(f"{name} has an index inside its index")
        return found

    async def read_config(self, manifest: ContainerManifest) -> bytes:
        text = await self._skopeo.read_config(manifest.digest)
        check_digest(text, manifest.config.digest, f"the configuration of {self._name}")
        return text

    async def fetch(self, manifest: ContainerManifest, layout: Path) -> Path:
        received = watch_bytes(layout)
        check_space(
            layout.parent, max(0, manifest.size - received()) + _SPARE_BYTES, f"a pull of {self._name}"
        )
        async with _told(self._name, manifest, layout, self._report):
            await self._skopeo.copy(layout, received, digest=manifest.digest)
        return layout


class _Layout:
    """An image in an OCI layout, or in an archive of one: copied as a whole, and then read."""

    def __init__(self, name: ContainerName, arch: str, copy: Path, skopeo: Skopeo, report: Report) -> None:
        self._name = name
        self._arch = arch
        self._copy = copy
        self._skopeo = skopeo
        self._report = report

    async def read_manifest(self) -> ContainerManifest:
        name = str(self._name)
        if self._name.transport == "oci":
            found = read_manifest(await self._skopeo.read_manifest(), name)
            if isinstance(found, ContainerIndex):
                found.choose(self._arch, name)
        self._report(Progress(f"copying {name}"))
        self._copy.mkdir(mode=0o700)
        await self._skopeo.copy(self._copy, watch_bytes(self._copy))
        digest = await asyncio.to_thread(_only_manifest, self._copy, name)
        manifest = read_manifest(await self._read(digest), name)
        if isinstance(manifest, ContainerIndex):
            raise BadImage(f"{name} has an index inside its index")
        return manifest

    async def read_config(self, manifest: ContainerManifest) -> bytes:
        return await self._read(manifest.config.digest)

    async def fetch(self, manifest: ContainerManifest, layout: Path) -> Path:
        return self._copy

    async def _read(self, digest: str) -> bytes:
        """Return a small blob of the copy."""
        text = await asyncio.to_thread(_read_start, blob_path(self._copy, digest))
        check_digest(text, digest, f"a part of {self._name}")
        return text


def blob_path(layout: Path, digest: str) -> Path:
    """Return the file of a blob. The digest was checked by `read_manifest`."""
    return layout / "blobs" / digest.replace(":", "/", 1)


def _read_start(path: Path) -> bytes:
    with path.open("rb") as stream:
        return stream.read(MOST_BYTES + 1)


def _only_manifest(layout: Path, name: str) -> str:
    """Return the digest of the only manifest in a layout that skopeo wrote."""
    index = load_json(_read_start(layout / "index.json"), f"the copy of {name}")
    return str(index["manifests"][0]["digest"])


@contextlib.asynccontextmanager
async def _told(
    name: ContainerName, manifest: ContainerManifest, layout: Path, report: Report
) -> AsyncIterator[None]:
    """Report the progress of a copy until the end of the block."""
    digests = {layer.digest for layer in manifest.layers}
    received = watch_bytes(layout)

    async def tell() -> None:
        while True:
            have, total = min(received(), manifest.size), manifest.size
            done = sum(blob_path(layout, digest).exists() for digest in digests)
            detail = f"{done} of {len(digests)} layers, {format_size(have)} of {format_size(total)}"
            report(Progress(f"pulling {name}", have / total if total else None, detail))
            await asyncio.sleep(_LOOK_EVERY_S)

    task = asyncio.ensure_future(tell())
    try:
        yield
    finally:
        await end_tasks(task)
