"""The documents of an artifact: the OCI manifest, and bough's description. Pure.

    manifest      artifactType and config of bough; one layer for each chunk, in the order of the parts
    description   the config: kind, size of a chunk, the parts, and the image or machine in words
    chunk         a layer: one zstd frame with an aligned piece of a part, as large as all other pieces

A chunk of zeros is left out. The description has the numbers of the present chunks as runs. Equal pieces are
one blob in the registry, whichever version they come from. The size of a chunk depends on the size of the
parts alone, and keeps the manifest below the 4 MiB that registries accept.

A registry may be hostile: every number is compared with the bounds before use. References: OCI image
specification 1.1, "Guidelines for Artifact Usage".
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bough.errors import BadImage
from bough.units import TIB, format_size

Kind = Literal["image", "machine"]
VERSION = 1
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
CHUNK_TYPE = "application/vnd.bough.chunk.v1+zstd"
#: Registries and skopeo accept no larger manifest and config.
MOST_DOCUMENT_BYTES = 4 << 20
#: A layer takes 160 bytes of the manifest.
MOST_CHUNKS = 16384
LEAST_CHUNK_BYTES = 4 << 20
MOST_PARTS = 32
_MOST_PART_BYTES = 2 * TIB
_MOST_CHUNK_BYTES = 1 << 32
#: Beginning of the media types of bough's descriptions, of all versions.
OWN_TYPES = "application/vnd.bough."
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_TYPE = re.compile(r"application/vnd\.bough\.([a-z-]{1,40})\.v([0-9]{1,6})\+json")


class Descriptor(NamedTuple):
    """A blob of the registry; `digest` is "sha256:" and 64 digits."""

    digest: str
    size: int


@dataclass(frozen=True)
class ArtifactManifest:
    """The checked OCI manifest of an artifact."""

    kind: Kind
    description: Descriptor
    chunks: tuple[Descriptor, ...]

    @property
    def stored_bytes(self) -> int:
        """Return the size of all blobs, each counted once."""
        return self.description.size + sum(dict(self.chunks).values())


class Part(BaseModel):
    """A part of an artifact.

    Attributes:
        runs: first number and count of chunks that are not all zeros, ascending.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")
    name: str = Field(pattern=r"^[a-z]{1,16}[0-9]{0,2}$")
    size_bytes: int = Field(gt=0, le=_MOST_PART_BYTES)
    runs: tuple[tuple[int, int], ...] = Field(default=(), max_length=MOST_CHUNKS)


class Description(BaseModel):
    """bough's description of an artifact.

    Attributes:
        content: what the parts mean: the manifests of images, or the manifest of a bundle. Unchecked.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")
    chunk_bytes: int = Field(ge=LEAST_CHUNK_BYTES, le=_MOST_CHUNK_BYTES)
    parts: tuple[Part, ...] = Field(min_length=1, max_length=MOST_PARTS)
    content: dict[str, Any]

    def places(self) -> Iterator[tuple[int, int, int]]:
        """Yield part, offset and length of each chunk, in the order of the manifest's layers."""
        for number, part in enumerate(self.parts):
            for first, count in part.runs:
                for index in range(first, first + count):
                    offset = index * self.chunk_bytes
                    yield number, offset, min(self.chunk_bytes, part.size_bytes - offset)

    @property
    def data_bytes(self) -> int:
        """Return the size of all chunks, unpacked."""
        return sum(length for _, _, length in self.places())


def config_type(kind: Kind) -> str:
    return f"{OWN_TYPES}{kind}.v{VERSION}+json"


def choose_chunk_bytes(sizes: Sequence[int]) -> int:
    """Return the size of a chunk for parts of these sizes."""
    chunk_bytes = LEAST_CHUNK_BYTES
    while sum(-(-size // chunk_bytes) for size in sizes) > MOST_CHUNKS:
        chunk_bytes *= 2
    return chunk_bytes


def most_stored_bytes(length: int) -> int:
    """Return the largest size of a zstd frame with `length` bytes."""
    return length + length // 128 + 65536


def render_manifest(kind: Kind, description: Descriptor, chunks: Sequence[Descriptor]) -> bytes:
    """Return the OCI manifest. The same artifact gives the same bytes."""
    return _render(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "artifactType": config_type(kind).removesuffix("+json"),
            "config": {"mediaType": config_type(kind), **description._asdict()},
            "layers": [{"mediaType": CHUNK_TYPE, **chunk._asdict()} for chunk in chunks],
        }
    )


def render_description(description: Description) -> bytes:
    return _render(description.model_dump(mode="json"))


def _render(document: dict[str, Any]) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def find_kind(manifest: Any) -> Kind | None:
    """Return the kind of bough's artifact that a manifest, as parsed JSON, describes; None: another's image.

    Raises:
        BadImage: the artifact is bough's, of a kind or a version that this bough does not know.
    """
    config = manifest.get("config") if isinstance(manifest, dict) else None
    media_type = config.get("mediaType") if isinstance(config, dict) else None
    if not isinstance(media_type, str) or not media_type.startswith(OWN_TYPES):
        return None
    match = _TYPE.fullmatch(media_type)
    for kind in get_args(Kind):
        if match and match[1] == kind and int(match[2]) == VERSION:
            found: Kind = kind
            return found
    told = f"{match[1]}, version {match[2]}" if match else media_type[:100]
    raise BadImage(
        f"the artifact has a format that this bough does not know: {told}",
        hint="use the version of bough that pushed the artifact, or a newer one",
    )


def parse_document(text: bytes) -> Any:
    """Return the JSON of a manifest or description. Raises BadImage."""
    if len(text) > MOST_DOCUMENT_BYTES:
        raise _altered(f"a document has more than {format_size(MOST_DOCUMENT_BYTES)}")
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise _altered("a document is not JSON") from None


def parse_manifest(text: bytes) -> ArtifactManifest:
    """Parse the OCI manifest of an artifact of bough.

    Raises:
        BadImage: the manifest is another's, is malformed, or exceeds a bound.
    """
    data = parse_document(text)
    kind = find_kind(data)
    if kind is None:
        raise BadImage("the manifest is not an artifact of bough")
    layers = data.get("layers")
    if data.get("schemaVersion") != 2 or not isinstance(layers, list) or len(layers) > MOST_CHUNKS:
        raise _altered("the manifest has no valid list of chunks")
    description = _descriptor(data["config"], data["config"]["mediaType"], MOST_DOCUMENT_BYTES)
    most = most_stored_bytes(_MOST_CHUNK_BYTES)
    chunks = tuple(_descriptor(layer, CHUNK_TYPE, most) for layer in layers)
    if len(set(chunks)) != len({chunk.digest for chunk in chunks}):
        raise _altered("a chunk has two sizes")
    return ArtifactManifest(kind, description, chunks)


def _descriptor(data: Any, media_type: str, most_bytes: int) -> Descriptor:
    if not isinstance(data, dict) or data.get("mediaType") != media_type:
        raise _altered("a layer is not a chunk of bough")
    digest, size = data.get("digest"), data.get("size")
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise _altered("a layer has no sha256 digest")
    if type(size) is not int or not 0 < size <= most_bytes:
        raise _altered("a layer is empty or too large")
    return Descriptor(digest, size)


def parse_description(text: bytes, manifest: ArtifactManifest) -> Description:
    """Parse the description, and check that the chunks of the manifest fit.

    Raises:
        BadImage
    """
    data = parse_document(text)
    try:
        description = Description.model_validate(data, strict=False)
    except ValidationError as error:
        place = ".".join(str(part) for part in error.errors()[0]["loc"])[:100]
        raise _altered(f"its description is not valid at {place!r}") from error
    except RecursionError:
        raise _altered("its description is not valid") from None
    names = [part.name for part in description.parts]
    if len(set(names)) != len(names) or description.chunk_bytes & (description.chunk_bytes - 1):
        raise _altered("its description contradicts itself")
    for part in description.parts:
        _check_runs(part, description.chunk_bytes)
    if sum(count for part in description.parts for _, count in part.runs) != len(manifest.chunks):
        raise _altered("the number of chunks differs from its description")
    for chunk, (_, _, length) in zip(manifest.chunks, description.places(), strict=True):
        if chunk.size > most_stored_bytes(length):
            raise _altered("a chunk is larger than the piece that it holds")
    return description


def _check_runs(part: Part, chunk_bytes: int) -> None:
    end = 0
    for first, count in part.runs:
        if first < end or count < 1:
            raise _altered(f"the chunks of {part.name} overlap")
        end = first + count
    if end > -(-part.size_bytes // chunk_bytes):
        raise _altered(f"a chunk lies behind the end of {part.name}")


def _altered(what: str) -> BadImage:
    return BadImage(f"the artifact was altered: {what}")
