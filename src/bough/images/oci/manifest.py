"""Manifests and indexes of container images: OCI's, and Docker's of schema 2.

The text comes from a registry. Its digest is checked before (`check_digest`); its form is checked here.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bough.errors import BadImage, NotFound
from bough.images.oci.config import ARCHITECTURES, MOST_LAYERS, load_json
from bough.spec.problems import quote

#: Media types of the configuration of a container image. Any other type is an artifact.
IMAGE_CONFIGS = (
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
)
_INDEXES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
_MANIFESTS = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
_LAYERS = re.compile(
    r"application/vnd\.oci\.image\.layer\.v1\.tar(?:\+gzip|\+zstd)?"
    r"|application/vnd\.docker\.image\.rootfs\.diff\.tar(?:\.gzip|\.zstd)?"
)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_MEDIA_TYPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9!#$&^_.+/-]{0,250}")
_MOST_MANIFESTS = 1000
_MOST_ARTIFACT_BLOBS = 20_000
_MOST_BLOB_BYTES = 1 << 50


@dataclass(frozen=True)
class Blob:
    """A file in a registry, by its digest.

    Attributes:
        digest: "sha256:...".
        size: in bytes.
    """

    media_type: str
    digest: str
    size: int


@dataclass(frozen=True)
class ContainerManifest:
    """The manifest of one container image, or of an artifact.

    Attributes:
        digest: "sha256:..." of the manifest's text.
        config, layers: the lowest layer first.
        artifact_type: what the manifest says it is; "": nothing.
    """

    digest: str
    config: Blob
    layers: tuple[Blob, ...]
    artifact_type: str = ""
    annotations: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_image(self) -> bool:
        return self.config.media_type in IMAGE_CONFIGS

    @property
    def size(self) -> int:
        """Return the bytes of all layers in the registry; a layer in use twice counts once."""
        return sum({layer.digest: layer.size for layer in self.layers}.values())


@dataclass(frozen=True)
class ContainerIndex:
    """A list of manifests: one for each architecture.

    Attributes:
        manifests: architecture as the image's author wrote it, like "arm64" or "arm/v7", -> digest.
    """

    manifests: Mapping[str, str]

    def choose(self, arch: str, name: str) -> str:
        """Return the digest of the manifest for a machine of `arch`.

        Raises:
            NotFound: the image is not for `arch`; the hint has the architectures.
        """
        for written, digest in self.manifests.items():
            if ARCHITECTURES.get(written.partition("/")[0]) == arch:
                return digest
        others = ", ".join(list(self.manifests)[:20]) or "none"
        raise NotFound(f"there is no {name} for {arch}", hint=f"available: {others}", kind="image")


def digest_of(text: bytes) -> str:
    return f"sha256:{hashlib.sha256(text).hexdigest()}"


def check_digest(text: bytes, digest: str, what: str) -> None:
    """Check the content from a registry.

    Raises:
        BadImage: the content has another digest.
    """
    if digest_of(text) != digest:
        raise BadImage(
            f"{what} has the digest {digest_of(text)}, and not {digest}",
            hint="the registry, or a proxy on the way, sends changed content: tell its operator",
        )


def read_manifest(text: bytes, name: str) -> ContainerManifest | ContainerIndex:
    """Read a manifest or an index.

    Raises:
        BadImage: the text is neither, or an old or encrypted form.
    """
    data = load_json(text, f"the manifest of {name}")
    kind = data.get("mediaType")
    if data.get("schemaVersion") == 1:
        raise BadImage(
            f"{name} has a manifest of Docker's schema 1, which bough does not read",
            hint="push the image again with a Docker of this decade: docker pull and docker push",
        )
    if data.get("schemaVersion") != 2 or kind not in (None, *_INDEXES, *_MANIFESTS):
        raise BadImage(f"{name} has a manifest of an unknown type: {quote(kind)}")
    if kind in _INDEXES or (kind is None and "manifests" in data):
        return _read_index(data, name)
    return _read_image(data, digest_of(text), name)


def _read_index(data: Mapping[str, Any], name: str) -> ContainerIndex:
    found: dict[str, str] = {}
    for entry in _entries(data.get("manifests"), _MOST_MANIFESTS, f"the index of {name}"):
        platform = entry.get("platform")
        platform = platform if isinstance(platform, Mapping) else {}
        blob = _read_blob(entry, f"the index of {name}")
        arch, variant = platform.get("architecture"), platform.get("variant")
        # Without a type of a manifest: a nested index. For "unknown": a signature or an attestation.
        if blob.media_type in _MANIFESTS and platform.get("os") == "linux" and isinstance(arch, str):
            written = f"{arch}/{variant}" if isinstance(variant, str) and variant else arch
            found.setdefault(written[:60], blob.digest)
    return ContainerIndex(found)


def _read_image(data: Mapping[str, Any], digest: str, name: str) -> ContainerManifest:
    what = f"the manifest of {name}"
    config = data.get("config")
    if not isinstance(config, Mapping):
        raise BadImage(f"{what} names no configuration")
    most = MOST_LAYERS if config.get("mediaType") in IMAGE_CONFIGS else _MOST_ARTIFACT_BLOBS
    layers = tuple(_read_blob(one, what) for one in _entries(data.get("layers"), most, what))
    annotations = data.get("annotations")
    kept = annotations if isinstance(annotations, Mapping) else {}
    artifact_type = data.get("artifactType")
    return ContainerManifest(
        digest=digest,
        config=_read_blob(config, what),
        layers=layers,
        artifact_type=artifact_type if isinstance(artifact_type, str) else "",
        annotations={key: value for key, value in kept.items() if isinstance(value, str)},
    )


def check_image(manifest: ContainerManifest, name: str) -> None:
    """Check that a manifest is a container image whose layers bough can unpack.

    Raises:
        BadImage: an artifact, or layers that are encrypted, of an unknown type, or not in the registry.
    """
    if not manifest.is_image:
        kind = manifest.artifact_type or manifest.config.media_type
        raise BadImage(
            f"{name} is not a container image, but an artifact of the type {quote(kind)}",
            hint="name a container image: one that docker or podman can run",
        )
    for number, layer in enumerate(manifest.layers, 1):
        if _LAYERS.fullmatch(layer.media_type):
            continue
        if "encrypted" in layer.media_type:
            raise BadImage(f"layer {number} of {name} is encrypted, and bough has no key")
        if "foreign" in layer.media_type or "nondistributable" in layer.media_type:
            raise BadImage(
                f"layer {number} of {name} is not in the registry but at an address of its vendor",
                hint="images of Windows have such layers; choose an image for Linux",
            )
        raise BadImage(f"layer {number} of {name} has an unknown type: {quote(layer.media_type)}")


def _entries(value: Any, most: int, what: str) -> Sequence[Mapping[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(one, Mapping) for one in value):
        raise BadImage(f"{what} is damaged: expected a list of blobs")
    if len(value) > most:
        raise BadImage(f"{what} has {len(value)} entries, more than the limit of {most}")
    return value


def _read_blob(entry: Mapping[str, Any], what: str) -> Blob:
    kind, digest, size = entry.get("mediaType"), entry.get("digest"), entry.get("size")
    if not isinstance(kind, str) or not _MEDIA_TYPE.fullmatch(kind):
        raise BadImage(f"{what} is damaged: expected a media type, got {quote(kind)}")
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise BadImage(f"{what} is damaged: expected sha256: and 64 hexadecimal digits, got {quote(digest)}")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= _MOST_BLOB_BYTES:
        raise BadImage(f"{what} is damaged: expected a size in bytes, got {quote(size)}")
    return Blob(kind, digest, size)
