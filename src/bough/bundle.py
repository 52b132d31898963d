"""The format of a bundle: a machine in one file or stream. Pure. The parts: snapshots/bundle_manifest.py.

    head      8 bytes, version u32, length u32, manifest (JSON), its SHA-256
    chunks    kind u8 = 1, part u8, extents u16, stored u32, size u32; then `stored` bytes: a zstd frame of
              `size` bytes: a table of extents (offset u64, length u64), and their bytes
    end       kind u8 = 2, 0, 0, 32, 0; then the SHA-256 of all bytes before

All numbers are little-endian. A part is a row of bytes; the manifest has its size. Bytes outside of all
extents are zero. In an overlay such bytes are the image's. The extents of a part ascend. A bundle contains no
path.

A bundle may be hostile. The reader holds one chunk at a time, of bounded size, and compares every number with
the bounds before use.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

from bough.errors import BadBundle

MAGIC = b"\x89BOUGH\r\n"
VERSION = 1
MOST_MANIFEST_BYTES = 16 << 20
MOST_EXTENTS = 4096
MOST_CHUNK_BYTES = 4 << 20
_LEVEL = 1
_HEAD = struct.Struct("<8sII")
_NUMBERS = struct.Struct("<II")
_RECORD = struct.Struct("<BBHII")
_EXTENT = struct.Struct("<QQ")
_DATA, _END = 1, 2


class Source(Protocol):
    """The stream of a bundle to read."""

    def read(self, size: int, /) -> bytes: ...


class Piece(NamedTuple):
    """Bytes of a part, and the offset of the first byte."""

    part: int
    offset: int
    data: memoryview


def write_bundle(
    manifest: dict[str, Any], parts: Iterable[tuple[int, Iterable[tuple[int, bytes]]]]
) -> Iterator[bytes]:
    """Yield the bundle in pieces.

    Args:
        parts: number and content of each part: ascending offsets, each with at most MOST_CHUNK_BYTES bytes.
    """
    import zstandard

    text = json.dumps(manifest, indent=1).encode() + b"\n"
    digest = hashlib.sha256()
    compressor = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True)

    def counted(data: bytes) -> bytes:
        digest.update(data)
        return data

    yield counted(_HEAD.pack(MAGIC, VERSION, len(text)) + text + hashlib.sha256(text).digest())
    for part, content in parts:
        for extents in _chunks(content):
            table = b"".join(_EXTENT.pack(offset, len(data)) for offset, data in extents)
            raw = table + b"".join(data for _, data in extents)
            stored = compressor.compress(raw)
            yield counted(_RECORD.pack(_DATA, part, len(extents), len(stored), len(raw)) + stored)
    yield _RECORD.pack(_END, 0, 0, 32, 0) + digest.digest()


def _chunks(content: Iterable[tuple[int, bytes]]) -> Iterator[list[tuple[int, bytes]]]:
    held: list[tuple[int, bytes]] = []
    size = 0
    for offset, data in content:
        if held and (size + len(data) > MOST_CHUNK_BYTES or len(held) == MOST_EXTENTS):
            yield held
            held, size = [], 0
        held.append((offset, data))
        size += len(data)
    if held:
        yield held


def read_manifest(source: Source) -> tuple[dict[str, Any], Any]:
    """Read the head. Return the manifest and the digest so far. Only the form of the manifest has been
    checked.

    Raises:
        BadBundle: the file is no bundle, is truncated, was altered, or has a newer version.
    """
    digest = hashlib.sha256()
    head = source.read(len(MAGIC))
    if head != MAGIC:
        raise BadBundle("not a bundle of bough", hint=_instead(head))
    manifest, rest = read_checked_manifest(source, VERSION, "machine")
    digest.update(head + rest)
    return manifest, digest


def read_checked_manifest(source: Source, known: int, exported: str) -> tuple[dict[str, Any], bytes]:
    """Read version, length, manifest and checksum. Return the manifest, and all bytes read.

    Args:
        known: the version that this bough reads.
        exported: what the bundle holds, for the hint: "machine".

    Raises:
        BadBundle: the file is truncated, was altered, or has a newer version.
    """
    numbers = read_exactly(source, _NUMBERS.size)
    version, length = _NUMBERS.unpack(numbers)
    if version != known:
        raise BadBundle(
            f"the bundle has version {version}, this bough reads version {known}",
            hint=f"import with the version of bough that exported the {exported}, or a newer one",
        )
    if length > MOST_MANIFEST_BYTES:
        raise BadBundle("the bundle was altered: its manifest is too large")
    text, told = read_exactly(source, length), read_exactly(source, 32)
    if hashlib.sha256(text).digest() != told:
        raise BadBundle("the bundle was altered: the checksum of its manifest does not match")
    try:
        manifest = json.loads(text)
    except (ValueError, RecursionError):
        manifest = None
    if not isinstance(manifest, dict):
        raise BadBundle("the manifest of the bundle is not a JSON object")
    return manifest, numbers + text + told


def _instead(head: bytes) -> str | None:
    known = (b"QFI\xfb", b"KDMV", b"\x7fELF", b"vhdx")
    is_image = head.startswith(known) or head[5:] in (b"ovf", b"vmd")
    return "bough image import takes disk images and OVA" if is_image else "bough export writes a bundle"


def read_pieces(source: Source, digest: Any, sizes: Sequence[int]) -> Iterator[Piece]:
    """Yield the content of the parts, of the given `sizes`. The iteration ends if all was valid.

    Raises:
        BadBundle: the bundle is truncated, was altered, or contradicts itself. Discard the pieces before.
    """
    import zstandard

    decompressor = zstandard.ZstdDecompressor(max_window_size=8 << 20)
    most_raw = MOST_CHUNK_BYTES + MOST_EXTENTS * _EXTENT.size
    ends = [0] * len(sizes)
    while True:
        head = read_exactly(source, _RECORD.size)
        kind, part, count, stored, size = _RECORD.unpack(head)
        if kind == _END:
            if (part, count, stored, size) != (0, 0, 32, 0) or read_exactly(source, 32) != digest.digest():
                raise BadBundle("the bundle was altered: its checksum does not match")
            if source.read(1):
                raise BadBundle("the bundle was altered: data follows its end")
            return
        if kind != _DATA or part >= len(sizes) or not 0 < count <= MOST_EXTENTS or size > most_raw:
            raise BadBundle("the bundle was altered: invalid chunk header")
        if stored > most_raw + 65536:
            raise BadBundle("the bundle was altered: a chunk is too large")
        payload = read_exactly(source, stored)
        digest.update(head + payload)
        try:
            # zstandard allocates the size in the frame.
            if zstandard.frame_content_size(payload) != size:
                raise BadBundle("the bundle was altered: the size of a chunk does not match its header")
            raw = decompressor.decompress(payload, max_output_size=size)
        except zstandard.ZstdError as error:
            raise BadBundle(f"the bundle was altered: {error}") from error
        yield from _pieces(memoryview(raw), part, count, ends, sizes[part])


def _pieces(raw: memoryview, part: int, count: int, ends: list[int], size: int) -> Iterator[Piece]:
    at = count * _EXTENT.size
    if len(raw) < at:
        raise BadBundle("the bundle was altered: a table of extents is truncated")
    for offset, length in _EXTENT.iter_unpack(raw[:at]):
        if offset < ends[part] or not length or offset + length > size or at + length > len(raw):
            raise BadBundle(
                "the bundle was altered: an extent is empty, overlaps, or lies outside of its part"
            )
        yield Piece(part, offset, raw[at : at + length])
        at += length
        ends[part] = offset + length
    if at != len(raw):
        raise BadBundle("the bundle was altered: a chunk holds more than its extents")


def read_exactly(source: Source, size: int) -> bytes:
    parts = []
    while size:
        data = source.read(size)
        if not data:
            raise BadBundle("the bundle is truncated", hint="copy the file again, or export again")
        parts.append(data)
        size -= len(data)
    return b"".join(parts)
