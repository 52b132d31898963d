"""Write an artifact as an OCI layout: cut the parts into chunks, and compress each chunk."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from bough.artifacts.document import (
    MOST_DOCUMENT_BYTES,
    Description,
    Descriptor,
    Kind,
    Part,
    choose_chunk_bytes,
    render_description,
    render_manifest,
)
from bough.artifacts.layout import finish_layout, write_blob
from bough.errors import InvalidInput
from bough.storage import check_space, no_space_is_told
from bough.units import MIB

#: Two versions of zstd may pack equal pieces differently. Then the piece is sent again, and nothing breaks.
_LEVEL = 3
_BLOCK_BYTES = 1 << 20
_ZEROS = bytes(_BLOCK_BYTES)
#: Kept free for other programs.
_SPARE_BYTES = 256 * MIB
_LOOK_EVERY_BYTES = 64 * MIB

#: Offset and bytes, ascending; bytes that are not named are zero.
Content = Iterable[tuple[int, bytes]]


@dataclass(frozen=True)
class WholePart:
    """A part to write: name, size and content."""

    name: str
    size_bytes: int
    content: Content


@dataclass(frozen=True)
class Written:
    """A layout as written.

    Attributes:
        manifest: the blob of the manifest; its digest names the artifact.
        stored_bytes: size of all blobs.
    """

    manifest: Descriptor
    chunks: int
    stored_bytes: int


def write_layout(
    root: Path, kind: Kind, content: dict[str, Any], parts: list[WholePart], tell: Callable[[int], None]
) -> Written:
    """Write an artifact to the directory `root`. Blocking. After an error, remove the directory.

    Args:
        content: what the parts mean; becomes part of the description.
        tell: called with the number of bytes since the last call; an exception ends the work.

    Raises:
        NoSpace
        InvalidInput: the parts have too many gaps for a description.
    """
    blobs = root / "blobs"
    (blobs / "sha256").mkdir(parents=True)
    chunk_bytes = choose_chunk_bytes([part.size_bytes for part in parts])
    packer = _Packer(root, chunk_bytes, tell)
    with no_space_is_told("the push", root):
        made = tuple(
            Part(name=part.name, size_bytes=part.size_bytes, runs=tuple(packer.pack(part))) for part in parts
        )
        text = render_description(Description(chunk_bytes=chunk_bytes, parts=made, content=content))
        if len(text) > MOST_DOCUMENT_BYTES:
            raise InvalidInput("the disks have too many gaps for the description of an artifact")
        manifest = write_blob(blobs, render_manifest(kind, write_blob(blobs, text), packer.chunks))
        finish_layout(root, manifest)
    return Written(manifest, len(packer.chunks), len(text) + sum(dict(packer.chunks).values()))


@dataclass
class _Packer:
    root: Path
    chunk_bytes: int
    tell: Callable[[int], None]
    chunks: list[Descriptor] = field(default_factory=list)
    _since_look: int = 0

    def pack(self, part: WholePart) -> Iterator[tuple[int, int]]:
        """Write the chunks of a part, and yield their runs."""
        first = count = 0
        for index, pieces in _cut(part.content, self.chunk_bytes):
            length = min(self.chunk_bytes, part.size_bytes - index * self.chunk_bytes)
            written = self._write(pieces, length)
            if written is None:
                continue
            self.chunks.append(written)
            if count and index == first + count:
                count += 1
                continue
            if count:
                yield first, count
            first, count = index, 1
        if count:
            yield first, count

    def _write(self, pieces: Iterator[tuple[int, bytes]], length: int) -> Descriptor | None:
        """Write one chunk of `length` bytes; return None, and write nothing, if all bytes are zero."""
        frame: _Frame | None = None
        try:
            for offset, data in pieces:
                self._look(len(data))
                if frame is None and data.count(0) == len(data):
                    continue
                frame = frame or _Frame(self.root / "chunk", length)
                frame.add(offset, data)
            return frame.finish(self.root / "blobs" / "sha256") if frame is not None else None
        finally:
            if frame is not None:
                frame.close()

    def _look(self, size: int) -> None:
        self.tell(size)
        self._since_look += size
        if self._since_look >= _LOOK_EVERY_BYTES:
            self._since_look = 0
            check_space(self.root, _SPARE_BYTES, "the push")


def _cut(content: Content, chunk_bytes: int) -> Iterator[tuple[int, Iterator[tuple[int, bytes]]]]:
    """Yield the number of each chunk that has data, and its pieces: offset in the chunk, and bytes."""
    pieces = _split(content, chunk_bytes)
    for index, group in groupby(pieces, lambda piece: piece[0] // chunk_bytes):
        start = index * chunk_bytes
        yield index, _moved(group, start)


def _moved(pieces: Iterator[tuple[int, bytes]], start: int) -> Iterator[tuple[int, bytes]]:
    for offset, data in pieces:
        yield offset - start, data


def _split(content: Content, chunk_bytes: int) -> Iterator[tuple[int, bytes]]:
    """Yield the content so that no piece lies in two chunks."""
    for offset, data in content:
        view, end = memoryview(data), offset + len(data)
        at = offset
        while at < end:
            stop = min(end, (at // chunk_bytes + 1) * chunk_bytes)
            yield at, bytes(view[at - offset : stop - offset]) if (at, stop) != (offset, end) else data
            at = stop


class _Frame:
    """A chunk that is being compressed to a file."""

    def __init__(self, path: Path, length: int) -> None:
        import zstandard

        self._path, self._length, self._at, self._size = path, length, 0, 0
        self._digest = hashlib.sha256()
        self._stream = path.open("wb")
        # The size in the frame, one thread and the same blocks: equal content gives equal bytes.
        self._compressor = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True).compressobj(length)

    def add(self, offset: int, data: bytes) -> None:
        self._zeros_to(offset)
        self._put(self._compressor.compress(data))
        self._at = offset + len(data)

    def _zeros_to(self, offset: int) -> None:
        while self._at < offset:
            step = min(_BLOCK_BYTES, offset - self._at)
            self._put(self._compressor.compress(_ZEROS[:step]))
            self._at += step

    def _put(self, data: bytes) -> None:
        self._digest.update(data)
        self._size += len(data)
        self._stream.write(data)

    def finish(self, blobs: Path) -> Descriptor:
        """Move the file to its place below `blobs`."""
        self._zeros_to(self._length)
        self._put(self._compressor.flush())
        self._stream.close()
        digest = self._digest.hexdigest()
        self._path.replace(blobs / digest)
        return Descriptor(f"sha256:{digest}", self._size)

    def close(self) -> None:
        self._stream.close()
        self._path.unlink(missing_ok=True)
