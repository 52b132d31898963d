"""Artifacts of bough in a registry: find one, fetch its chunks, push a new one. skopeo does the transfers."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bough.artifacts.document import (
    ArtifactManifest,
    Description,
    Kind,
    find_kind,
    parse_description,
    parse_document,
    parse_manifest,
)
from bough.artifacts.writing import Written
from bough.errors import BadImage, InvalidInput
from bough.images.oci.kept_layouts import KeptLayouts
from bough.images.oci.manifest import check_digest, digest_of
from bough.images.oci.skopeo import Skopeo, watch_bytes
from bough.progress import Progress, Report
from bough.spec.container_name import ContainerName, is_container_name, parse_container_name
from bough.storage import check_space, no_space_is_told
from bough.units import MIB, format_size

#: Manifest, marks of the layout, and one blob more than the manifest names.
_SLACK_BYTES = 16 * MIB
_SPARE_BYTES = 256 * MIB
_HINT = "a name is docker://HOST/REPOSITORY:TAG, like docker://registry.example/team/web:1"


@dataclass(frozen=True)
class RemoteArtifact:
    """An artifact in a registry, with its documents checked.

    Attributes:
        digest: "sha256:..." of the manifest.
    """

    name: ContainerName
    digest: str
    manifest: ArtifactManifest
    description: Description
    skopeo: Skopeo

    @contextlib.asynccontextmanager
    async def fetched(self, kept: KeptLayouts, report: Report) -> AsyncIterator[Path]:
        """Fetch the chunks, and provide the directory of the blobs. The directory is removed at the end.

        After a broken transfer the received blobs stay; the next attempt resumes.

        Raises:
            DownloadFailed, BadImage, NoSpace
        """
        async with kept.hold(self.digest, str(self.name), report) as layout:
            with no_space_is_told(str(self.name), layout):
                await self._fetch(layout, report)
            yield layout / "blobs"

    async def _fetch(self, layout: Path, report: Report) -> None:
        count, total = watch_bytes(layout), self.manifest.stored_bytes
        step = f"pulling {self.name}"
        needed = total - count() + self.description.data_bytes + _SPARE_BYTES
        check_space(layout, needed, f"{self.name} of {format_size(self.description.data_bytes)}")
        report(Progress(step, 0.0))

        def received() -> int:
            """Count the received bytes. A hostile registry may send a blob without an end."""
            have = count()
            if have > total + _SLACK_BYTES:
                raise BadImage(f"{self.name} sent more than the {format_size(total)} of its manifest")
            of = f"{format_size(min(have, total))} of {format_size(total)}"
            report(Progress(step, min(1.0, have / total), of))
            return have

        await self.skopeo.copy(layout, received, digest=self.digest)


async def find_artifact(name: ContainerName, skopeo: Skopeo, digest: str = "") -> RemoteArtifact | None:
    """Return the artifact of bough that a name leads to; None: a container image, or another's artifact.

    Args:
        digest: of the manifest, if known.

    Raises:
        BadImage: the artifact is damaged, or of a newer version of bough. NotFound, DownloadFailed
    """
    text = await skopeo.read_manifest(digest)
    if find_kind(_document_of(text)) is None:
        return None
    if digest or name.digest:
        check_digest(text, digest or name.digest, f"the manifest of {name}")
    digest = digest_of(text)
    manifest = parse_manifest(text)
    config = await skopeo.read_config(digest)
    check_digest(config, manifest.description.digest, f"the description of {name}")
    return RemoteArtifact(name, digest, manifest, parse_description(config, manifest), skopeo)


def _document_of(text: bytes) -> Any:
    try:
        return parse_document(text)
    except BadImage:  # no document of bough; the reader of container images says what is wrong
        return None


def check_kind(artifact: RemoteArtifact | None, wanted: Kind, name: ContainerName) -> RemoteArtifact:
    """Return the artifact if it is of the wanted kind.

    Raises:
        InvalidInput: the name leads to an image instead of a machine, or the other way round.
    """
    kind = artifact.manifest.kind if artifact is not None else "image"
    if artifact is None or kind != wanted:
        what = {"image": "an image", "machine": "a machine"}[kind]
        hint = f"bough image pull {name}" if kind == "image" else f"bough import {name}"
        raise InvalidInput(f"{name} is {what}", hint=f"use: {hint}")
    return artifact


def parse_place(text: str, *, may_have_digest: bool = False) -> ContainerName:
    """Return the name of a place in a registry. Raises InvalidInput."""
    if not is_container_name(text):
        raise InvalidInput(f"{text[:120]!r} is not the name of a place in a registry", hint=_HINT)
    name = parse_container_name(text)
    if name.is_local:
        raise InvalidInput(f"{name} is not in a registry", hint=_HINT)
    if name.digest and not may_have_digest:
        raise InvalidInput(
            f"{name} names a digest, which the registry computes", hint="name a tag instead: REPOSITORY:TAG"
        )
    return name


async def push_layout(layout: Path, written: Written, skopeo: Skopeo, report: Report) -> None:
    """Copy a layout to its registry. Blobs that the registry has are not sent again.

    Raises:
        DownloadFailed: the registry refuses the push, or cannot be reached.
    """
    report(Progress(f"pushing {written.chunks} chunks of {format_size(written.stored_bytes)}"))
    await skopeo.push(layout)
