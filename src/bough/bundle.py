"""The form of a bundle: a machine in one file or stream. Pure; what its parts are: snapshots/handover.py.

    head      8 bytes, version u32, length u32, manifest (JSON), its SHA-256
    chunks    kind u8 = 1, part u8, extents u16, stored u32, size u32; then `stored` bytes: a zstd frame of
              `size` bytes: a table of extents (offset u64, length u64), and what they hold
    end       kind u8 = 2, 0, 0, 32, 0; then the SHA-256 of all before

All little-endian. A part is a row of bytes of a size that the manifest tells; what no extent holds is zero
(or, of a disk that is a difference, as in its image). Extents of a part ascend. Nothing in it is a path.

A bundle comes from somebody else. The reader holds one chunk at a time, of bounded size, and believes no
number before it was compared with what is allowed.
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
_RECORD = struct.Struct("<BBHII")
_EXTENT = struct.Struct("<QQ")
_DATA, _END = 1, 2


class Source(Protocol):
    """Where a bundle is read from."""

    def read(self, size: int, /) -> bytes: ...


class Piece(NamedTuple):
    """Bytes of a part, and where they belong."""

    part: int
    offset: int
    data: memoryview


def write_bundle(
    manifest: dict[str, Any], parts: Iterable[tuple[int, Iterable[tuple[int, bytes]]]]
) -> Iterator[bytes]:
    """The bundle, in pieces.

    Args:
        parts: number of each, and its content: offsets, ascending, and bytes, at most MOST_CHUNK_BYTES.
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
    """What is at its beginning, of which only the form has been checked; and the digest so far.

    Raises:
        BadBundle: it is none, is cut off, was altered, or is of a newer version.
    """
    digest = hashlib.sha256()
    head = source.read(len(MAGIC))
    if head != MAGIC:
        raise BadBundle("this is no bundle of bough", hint=_instead(head))
    head += _read(source, _HEAD.size - len(head))
    _, version, length = _HEAD.unpack(head)
    if version != VERSION:
        raise BadBundle(
            f"the bundle is of version {version}, and this bough reads version {VERSION}",
            hint="a newer bough reads it",
        )
    if length > MOST_MANIFEST_BYTES:
        raise BadBundle("the bundle was altered: its manifest is larger than any")
    text, told = _read(source, length), _read(source, 32)
    if hashlib.sha256(text).digest() != told:
        raise BadBundle("the bundle was altered: its manifest is not what its checksum says")
    try:
        manifest = json.loads(text)
    except (ValueError, RecursionError):
        manifest = None
    if not isinstance(manifest, dict):
        raise BadBundle("the manifest of the bundle is no JSON object")
    digest.update(head + text + told)
    return manifest, digest


def _instead(head: bytes) -> str | None:
    known = (b"QFI\xfb", b"KDMV", b"\x7fELF", b"vhdx")
    is_image = head.startswith(known) or head[5:] in (b"ovf", b"vmd")
    return "bough image import takes disk images and OVA" if is_image else "bough export writes one"


def read_pieces(source: Source, digest: Any, sizes: Sequence[int]) -> Iterator[Piece]:
    """What is in the parts, which have `sizes`; ends when all of it was there and right.

    Raises:
        BadBundle: it is cut off, was altered, or contradicts itself. What came before is not to be used.
    """
    import zstandard

    decompressor = zstandard.ZstdDecompressor(max_window_size=8 << 20)
    most_raw = MOST_CHUNK_BYTES + MOST_EXTENTS * _EXTENT.size
    ends = [0] * len(sizes)
    while True:
        head = _read(source, _RECORD.size)
        kind, part, count, stored, size = _RECORD.unpack(head)
        if kind == _END:
            if (part, count, stored, size) != (0, 0, 32, 0) or _read(source, 32) != digest.digest():
                raise BadBundle("the bundle was altered: it is not what its checksum says")
            if source.read(1):
                raise BadBundle("the bundle was altered: something follows its end")
            return
        if kind != _DATA or part >= len(sizes) or not 0 < count <= MOST_EXTENTS or size > most_raw:
            raise BadBundle("the bundle was altered: it has a chunk that none has")
        if stored > most_raw + 65536:
            raise BadBundle("the bundle was altered: it has a chunk larger than any")
        payload = _read(source, stored)
        digest.update(head + payload)
        try:
            # The size that a frame tells is what would be allocated for it.
            if zstandard.frame_content_size(payload) != size:
                raise BadBundle("the bundle was altered: a chunk is of another size than it says")
            raw = decompressor.decompress(payload, max_output_size=size)
        except zstandard.ZstdError as error:
            raise BadBundle(f"the bundle was altered: {error}") from error
        yield from _pieces(memoryview(raw), part, count, ends, sizes[part])


def _pieces(raw: memoryview, part: int, count: int, ends: list[int], size: int) -> Iterator[Piece]:
    at = count * _EXTENT.size
    if len(raw) < at:
        raise BadBundle("the bundle was altered: a table of extents is cut off")
    for offset, length in _EXTENT.iter_unpack(raw[:at]):
        if offset < ends[part] or not length or offset + length > size or at + length > len(raw):
            raise BadBundle("the bundle was altered: an extent lies where none can")
        yield Piece(part, offset, raw[at : at + length])
        at += length
        ends[part] = offset + length
    if at != len(raw):
        raise BadBundle("the bundle was altered: a chunk holds more than its extents")


def _read(source: Source, size: int) -> bytes:
    parts = []
    while size:
        data = source.read(size)
        if not data:
            raise BadBundle("the bundle is truncated", hint="was it copied whole?")
        parts.append(data)
        size -= len(data)
    return b"".join(parts)
