"""Read the chunks of an artifact from the blobs that skopeo pulled. The registry may be hostile."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from bough.artifacts.document import ArtifactManifest, Description, Descriptor
from bough.artifacts.layout import blob_path, check_blob
from bough.bundle import Piece
from bough.errors import BadImage

_BLOCK_BYTES = 1 << 20
#: Level 3 needs 2 MiB. A frame that asks for more is not bough's.
_MOST_WINDOW_BYTES = 8 << 20


def read_pieces(blobs: Path, manifest: ArtifactManifest, description: Description) -> Iterator[Piece]:
    """Yield the content of the parts, ascending in each part. The iteration ends if all was valid.

    Raises:
        BadImage: a chunk is missing or altered. Discard the pieces before.
    """
    for chunk, (part, start, length) in zip(manifest.chunks, description.places(), strict=True):
        offset = start
        for data in _unpack(blobs, chunk, length):
            yield Piece(part, offset, memoryview(data))
            offset += len(data)


def _unpack(blobs: Path, chunk: Descriptor, length: int) -> Iterator[bytes]:
    """Yield the content of a chunk in blocks, `length` bytes in total."""
    import zstandard

    path = blob_path(blobs, chunk.digest)
    check_blob(path, chunk)
    left = length
    try:
        with path.open("rb") as stream:
            reader = zstandard.ZstdDecompressor(max_window_size=_MOST_WINDOW_BYTES).stream_reader(stream)
            while data := reader.read(min(_BLOCK_BYTES, left + 1)):
                left -= len(data)
                if left < 0:
                    raise _altered(chunk, "holds more than its piece")
                yield data
            if left:
                raise _altered(chunk, "holds less than its piece")
    except zstandard.ZstdError as error:
        raise _altered(chunk, str(error)[:100]) from error


def _altered(chunk: Descriptor, what: str) -> BadImage:
    return BadImage(f"the artifact was altered: the chunk {chunk.digest[:19]} {what}")
