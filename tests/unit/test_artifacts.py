"""Artifacts of a registry: the format, equal pieces, and documents of a hostile registry."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

from bough.artifacts.content import read_data
from bough.artifacts.document import (
    CHUNK_TYPE,
    LEAST_CHUNK_BYTES,
    MOST_CHUNKS,
    MOST_DOCUMENT_BYTES,
    ArtifactManifest,
    Description,
    Descriptor,
    Part,
    choose_chunk_bytes,
    config_type,
    find_kind,
    most_stored_bytes,
    parse_description,
    parse_manifest,
    render_description,
    render_manifest,
)
from bough.artifacts.layout import blob_path, read_blob
from bough.artifacts.reading import read_pieces
from bough.artifacts.writing import WholePart, Written, write_layout
from bough.errors import BadImage
from bough.units import GIB, MIB, TIB

CHUNK = LEAST_CHUNK_BYTES
#: A part whose last chunk is short, with gaps, zeros in its data, and a piece over a border of chunks.
DISK = [
    (0, b"boot" * 256),
    (CHUNK - 512, bytes(range(256)) * 4),
    (3 * CHUNK, bytes(4096)),
    (5 * CHUNK + 4096, os.urandom(65536)),
    (7 * CHUNK, b"end"),
]
SIZE = 7 * CHUNK + 4096


def write(root: Path, *parts: WholePart, **content: Any) -> Written:
    root.mkdir()
    return write_layout(root, "image", content, list(parts), lambda _: None)


def read(root: Path, written: Written) -> tuple[ArtifactManifest, Description]:
    manifest = parse_manifest(read_blob(root / "blobs", written.manifest))
    return manifest, parse_description(read_blob(root / "blobs", manifest.description), manifest)


def unpack(root: Path, written: Written) -> list[bytes]:
    manifest, description = read(root, written)
    parts = [bytearray(part.size_bytes) for part in description.parts]
    for piece in read_pieces(root / "blobs", manifest, description):
        parts[piece.part][piece.offset : piece.offset + len(piece.data)] = piece.data
    return [bytes(part) for part in parts]


def whole(content: list[tuple[int, bytes]], size: int) -> bytes:
    made = bytearray(size)
    for offset, data in content:
        made[offset : offset + len(data)] = data
    return bytes(made)


def test_there_and_back(tmp_path: Path) -> None:
    parts = (WholePart("disk0", SIZE, DISK), WholePart("disk1", 512, []), WholePart("seed", 3, [(0, b"abc")]))
    written = write(tmp_path / "a", *parts, word="kept")
    assert unpack(tmp_path / "a", written) == [whole(DISK, SIZE), bytes(512), b"abc"]
    manifest, description = read(tmp_path / "a", written)
    assert description.content == {"word": "kept"}
    assert description.parts[0].runs == ((0, 2), (5, 1), (7, 1)), "a chunk of zeros is left out"
    assert written.chunks == 5
    assert manifest.stored_bytes == written.stored_bytes
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["blobs", "index.json", "oci-layout"]


def test_equal_content_gives_equal_blobs(tmp_path: Path) -> None:
    """The manner of reading does not matter: pieces of another size, holes or zeros."""
    first = write(tmp_path / "a", WholePart("disk0", SIZE, DISK))
    data = whole(DISK, SIZE)
    pieces = [(at, data[at : at + 3 * MIB]) for at in range(0, SIZE, 3 * MIB)]
    assert write(tmp_path / "b", WholePart("disk0", SIZE, pieces)) == first
    changed = [*DISK[:3], (5 * CHUNK + 4096, b"other"), DISK[4]]
    write(tmp_path / "c", WholePart("disk0", SIZE, changed))
    before = {path.name for path in (tmp_path / "a/blobs/sha256").iterdir()}
    after = {path.name for path in (tmp_path / "c/blobs/sha256").iterdir()}
    assert len(after - before) == 2, "the changed chunk and the manifest; the description is the same"


def test_a_repeated_chunk_is_stored_once(tmp_path: Path) -> None:
    twice = [(0, b"x" * CHUNK), (2 * CHUNK, b"x" * CHUNK)]
    written = write(tmp_path / "a", WholePart("disk0", 4 * CHUNK, twice))
    assert len(list((tmp_path / "a/blobs/sha256").iterdir())) == 3
    assert unpack(tmp_path / "a", written) == [whole(twice, 4 * CHUNK)]


def test_the_content_of_a_file_with_holes(tmp_path: Path) -> None:
    file = tmp_path / "disk"
    with file.open("wb") as stream:
        stream.truncate(16 * MIB)
        os.pwrite(stream.fileno(), b"x" * MIB, 4 * MIB)
    found = list(read_data(file, 256 * 1024))
    assert whole(found, 16 * MIB) == file.read_bytes()
    assert len(found) == 4


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [([8 * GIB], 4), ([64 * GIB], 4), ([64 * GIB, 1], 8), ([2 * TIB], 128), ([2 * TIB] * 17, 4096)],
)
def test_the_manifest_stays_small(sizes: list[int], expected: int) -> None:
    chunk_bytes = choose_chunk_bytes(sizes)
    assert chunk_bytes == expected * MIB
    assert sum(-(-size // chunk_bytes) for size in sizes) <= MOST_CHUNKS
    chunk = Descriptor("sha256:" + "a" * 64, most_stored_bytes(1 << 32))
    assert len(render_manifest("image", chunk, [chunk] * MOST_CHUNKS)) < MOST_DOCUMENT_BYTES


# -- a hostile registry ---------------------------------------------------------------------------

Spoil = Callable[[dict[str, Any]], object]


def valid(tmp_path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    written = write(tmp_path / "a", WholePart("disk0", SIZE, DISK))
    blobs = tmp_path / "a/blobs"
    manifest = json.loads(read_blob(blobs, written.manifest))
    config = manifest["config"]
    return manifest, json.loads(read_blob(blobs, Descriptor(config["digest"], config["size"])))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda m: m.update(schemaVersion=1),
        lambda m: m.update(layers=None),
        lambda m: m.update(layers=m["layers"] * MOST_CHUNKS),
        lambda m: m.update(layers=["x"]),
        lambda m: m["layers"][0].update(mediaType="application/vnd.oci.image.layer.v1.tar"),
        lambda m: m["layers"][0].update(digest="sha256:../../../../etc/passwd"),
        lambda m: m["layers"][0].update(digest="sha512:" + "a" * 128),
        lambda m: m["layers"][0].update(digest="sha256:" + "A" * 64),
        lambda m: m["layers"][0].update(digest=None),
        lambda m: m["layers"][0].update(size=0),
        lambda m: m["layers"][0].update(size=-1),
        lambda m: m["layers"][0].update(size=True),
        lambda m: m["layers"][0].update(size=1.5),
        lambda m: m["layers"][0].update(size=1 << 62),
        lambda m: m["layers"].append({**m["layers"][0], "size": 1}),
        lambda m: m["config"].update(size=MOST_DOCUMENT_BYTES + 1),
        lambda m: m["config"].pop("digest"),
    ],
)
def test_a_hostile_manifest(tmp_path: Path, spoil: Spoil) -> None:
    manifest, _ = valid(tmp_path)
    parse_manifest(json.dumps(manifest).encode())
    spoil(manifest)
    with pytest.raises(BadImage, match="altered"):
        parse_manifest(json.dumps(manifest).encode())


@pytest.mark.parametrize(
    "spoil",
    [
        lambda d: d.pop("parts"),
        lambda d: d.update(parts=[]),
        lambda d: d.update(parts=d["parts"] * 2),
        lambda d: d.update(parts=d["parts"] * 100),
        lambda d: d.update(content=[]),
        lambda d: d.update(chunk_bytes=1),
        lambda d: d.update(chunk_bytes=CHUNK + 1),
        lambda d: d.update(chunk_bytes=1 << 40),
        lambda d: d["parts"][0].update(name="../disk"),
        lambda d: d["parts"][0].update(size_bytes=0),
        lambda d: d["parts"][0].update(size_bytes=1 << 60),
        lambda d: d["parts"][0].update(size_bytes=CHUNK),
        lambda d: d["parts"][0].update(runs=[[0, 2], [1, 1], [7, 1]]),
        lambda d: d["parts"][0].update(runs=[[0, 1 << 60]]),
        lambda d: d["parts"][0].update(runs=[[0, 4], [5, 0]]),
        lambda d: d["parts"][0].update(runs=[[-1, 4]]),
        lambda d: d["parts"][0].update(runs=[[0, 3]]),
        lambda d: d["parts"][0].update(runs=[[0, 1, 1]]),
        lambda d: d["parts"][0].update(runs=[[5, 4]]),
    ],
)
def test_a_hostile_description(tmp_path: Path, spoil: Spoil) -> None:
    manifest, description = valid(tmp_path)
    checked = parse_manifest(json.dumps(manifest).encode())
    parse_description(json.dumps(description).encode(), checked)
    spoil(description)
    with pytest.raises(BadImage, match="altered"):
        parse_description(json.dumps(description).encode(), checked)


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b"null", b"[" * 100_000, b'{"config":1}', b" " * (5 << 20)]
)
def test_a_manifest_that_is_none(text: bytes) -> None:
    with pytest.raises(BadImage):
        parse_manifest(text)


def test_kinds_and_versions() -> None:
    def of(media_type: str) -> dict[str, Any]:
        return {"config": {"mediaType": media_type}}

    assert find_kind(of("application/vnd.bough.image.v1+json")) == "image"
    assert find_kind(of("application/vnd.bough.machine.v1+json")) == "machine"
    for other in ("application/vnd.oci.image.config.v1+json", "application/vnd.bought.image.v1+json", ""):
        assert find_kind(of(other)) is None
    nothing: list[Any] = [None, [], "x", {}, {"config": []}, {"config": {"mediaType": 1}}]
    assert not any(find_kind(other) for other in nothing)
    for newer in ("application/vnd.bough.image.v2+json", "application/vnd.bough.farm.v1+json"):
        with pytest.raises(BadImage, match="does not know") as caught:
            find_kind(of(newer))
        assert "newer" in str(caught.value.hint)


def one_chunk(tmp_path: Path, blob: bytes, size: int = CHUNK) -> None:
    """Read an artifact whose only chunk is `blob`."""
    blobs = tmp_path / "blobs"
    (blobs / "sha256").mkdir(parents=True)
    digest = hashlib.sha256(blob).hexdigest()
    (blobs / "sha256" / digest).write_bytes(blob)
    chunk = Descriptor(f"sha256:{digest}", len(blob))
    manifest = ArtifactManifest("image", Descriptor("sha256:" + "0" * 64, 1), (chunk,))
    parts = (Part(name="disk0", size_bytes=size, runs=((0, 1),)),)
    description = Description(chunk_bytes=CHUNK, parts=parts, content={})
    assert sum(len(piece.data) for piece in read_pieces(blobs, manifest, description)) == size


def pack(data: bytes, **options: Any) -> bytes:
    return zstandard.ZstdCompressor(**options).compress(data)


def test_a_chunk_with_another_content(tmp_path: Path) -> None:
    one_chunk(tmp_path / "right", pack(b"x" * CHUNK))
    wide = zstandard.ZstdCompressionParameters.from_level(3, window_log=27, write_content_size=False)
    hostile = {
        "a bomb": pack(bytes(64 * MIB)),
        "too short": pack(b"x" * 100),
        "truncated": pack(os.urandom(CHUNK))[:-100],
        "no zstd": b"x" * 5000,
        "a huge window": zstandard.ZstdCompressor(compression_params=wide).compressobj().compress(b"x")
        + b"x",
    }
    for name, blob in hostile.items():
        with pytest.raises(BadImage, match="altered"):
            one_chunk(tmp_path / name, blob)


def test_a_blob_that_is_missing_or_another(tmp_path: Path) -> None:
    written = write(tmp_path / "a", WholePart("disk0", SIZE, DISK))
    manifest, description = read(tmp_path / "a", written)
    blobs = tmp_path / "a/blobs"
    path = blob_path(blobs, manifest.chunks[0].digest)
    data = path.read_bytes()
    for spoiled in (data[:-1], data + b"x", bytes([data[0] ^ 1]) + data[1:]):
        path.write_bytes(spoiled)
        with pytest.raises(BadImage, match="another content"):
            list(read_pieces(blobs, manifest, description))
    path.unlink()
    with pytest.raises(BadImage, match="missing"):
        list(read_pieces(blobs, manifest, description))
    path.symlink_to("/etc/passwd")
    with pytest.raises(BadImage, match="missing"):
        list(read_pieces(blobs, manifest, description))


def test_the_documents_are_stable() -> None:
    """A change of these bytes is a new version of the format."""
    chunk = Descriptor("sha256:" + "a" * 64, 7)
    assert json.loads(render_manifest("machine", chunk, [chunk])) == {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "artifactType": "application/vnd.bough.machine.v1",
        "config": {"mediaType": config_type("machine"), "digest": chunk.digest, "size": 7},
        "layers": [{"mediaType": CHUNK_TYPE, "digest": chunk.digest, "size": 7}],
    }
    part = Part(name="disk0", size_bytes=CHUNK, runs=((0, 1),))
    assert json.loads(render_description(Description(chunk_bytes=CHUNK, parts=(part,), content={}))) == {
        "chunk_bytes": CHUNK,
        "parts": [{"name": "disk0", "size_bytes": CHUNK, "runs": [[0, 1]]}],
        "content": {},
    }
