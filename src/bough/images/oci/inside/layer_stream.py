"""A layer's tar archive, read once from the blob: decompressed, bounded, and checked against both digests."""

from __future__ import annotations

import contextlib
import hashlib
import os
import queue
import subprocess
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from bough.images.oci.inside.failure import BAD_LAYER, HOST_LACKS, TOO_MUCH, Failure

_CHUNK_BYTES = 1 << 20
#: Chunks that the reading thread may be ahead.
_MOST_AHEAD = 4
#: The header of one entry, with long names, extended attributes and the map of a sparse file.
_MOST_HEADER_BYTES = 2 << 20
_DIGESTS = ("sha256", "sha384", "sha512")
_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"
#: A zstd file may begin with a skippable frame: 0x184D2A5?.
_ZSTD_SKIPPABLE = b"\x2a\x4d\x18"
_OTHERS = {b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x04\x22\x4d\x18": "lz4"}
#: A larger window would need more memory than the program may have.
_ZSTD_MEMORY = "--memory=128MiB"


@dataclass(frozen=True)
class Blob:
    """A layer as the image describes it.

    Attributes:
        descriptor: of the open blob.
        digest: of the blob: "sha256:...".
        diff_id: digest of the uncompressed archive.
    """

    descriptor: int
    digest: str
    size_bytes: int
    diff_id: str


class Allowance:
    """The bytes that all layers together may still unpack."""

    def __init__(self, most_bytes: int) -> None:
        self._left = most_bytes

    def take(self, count: int) -> None:
        self._left -= count
        if self._left < 0:
            raise Failure(TOO_MUCH, "the layers unpack to more bytes than allowed")


class LayerStream:
    """A readable archive with `read`, `tell` and a `seek` forwards, as tarfile needs it.

    A thread reads, checks and decompresses ahead. Call `finish` at its end, and `close` in any
    case.

    Args:
        on_read: is called with the number of bytes read from the blob, in the reading thread.
    """

    def __init__(self, blob: Blob, allowance: Allowance, on_read: Callable[[int], None]) -> None:
        self._blob = blob
        self._allowance = allowance
        self._on_read = on_read
        self._chunk = memoryview(b"")
        self._at = 0
        self._position = 0
        self._header_left = _MOST_HEADER_BYTES
        self._ended = False
        self._closed = threading.Event()
        self._chunks: queue.Queue[object] = queue.Queue(_MOST_AHEAD)
        self._thread = threading.Thread(target=self._produce, daemon=True)
        self._thread.start()

    def tell(self) -> int:
        return self._position

    def begin_header(self) -> None:
        """Allow the bytes of one more entry's header."""
        self._header_left = _MOST_HEADER_BYTES

    def read(self, count: int) -> bytes:
        """Return the next bytes of a header: fewer than `count` at the end of the archive only."""
        self._header_left -= count
        if count < 0 or self._header_left < 0:
            raise Failure(BAD_LAYER, "the header of an entry is longer than 2 MiB")
        end = self._at + count
        if end <= len(self._chunk):
            data = bytes(self._chunk[self._at : end])
            self._at = end
            self._position += count
            return data
        return b"".join(bytes(part) for part in self.parts(count))

    def parts(self, count: int) -> Iterator[memoryview]:
        """Return the next `count` bytes in parts; less than that at the end of the archive only."""
        while count > 0 and self._fill():
            part = self._chunk[self._at : self._at + count]
            self._at += len(part)
            self._position += len(part)
            count -= len(part)
            yield part

    def seek(self, position: int) -> None:
        """Skip to `position`.

        Raises:
            Failure: the position is behind, or after the end of the archive.
        """
        if position < self._position:
            raise Failure(BAD_LAYER, "the archive leads backwards")
        for _ in self.parts(position - self._position):
            pass
        if self._position < position:
            raise Failure(BAD_LAYER, "the archive ends within an entry")

    def finish(self) -> None:
        """Read the rest, so that both digests are compared.

        Raises:
            Failure: a digest or the size differs, or the blob is truncated.
        """
        while self._fill():
            self._position += len(self._chunk) - self._at
            self._at = len(self._chunk)

    def close(self) -> None:
        self._closed.set()
        while self._thread.is_alive():
            with contextlib.suppress(queue.Empty):
                self._chunks.get(timeout=0.05)
        self._thread.join()

    def _fill(self) -> bool:
        while self._at == len(self._chunk):
            if self._ended:
                return False
            got = self._chunks.get()
            if isinstance(got, BaseException):
                raise got
            if got is None:
                self._ended = True
                return False
            assert isinstance(got, bytes)
            self._chunk, self._at = memoryview(got), 0
        return True

    def _produce(self) -> None:
        """Pass on the archive in chunks, then None; or the failure."""
        try:
            uncompressed = _new_digest(self._blob.diff_id)
            for chunk in decompress(self._read_blob()):
                uncompressed.update(chunk)
                self._allowance.take(len(chunk))
                self._put(chunk)
            _compare(uncompressed, self._blob.diff_id, "uncompressed, the layer")
            self._put(None)
        except _Closed:
            pass
        except BaseException as error:
            with contextlib.suppress(_Closed):
                self._put(error)

    def _put(self, item: object) -> None:
        while True:
            if self._closed.is_set():
                raise _Closed
            with contextlib.suppress(queue.Full):
                self._chunks.put(item, timeout=0.5)
                return

    def _read_blob(self) -> Iterator[bytes]:
        """Read the blob to its end. The end comes only after the check of its size and digest."""
        digest, size = _new_digest(self._blob.digest), 0
        while data := self._read_some():
            size += len(data)
            if size > self._blob.size_bytes:
                raise Failure(
                    BAD_LAYER, f"the blob has more than the {self._blob.size_bytes} bytes of its descriptor"
                )
            digest.update(data)
            self._on_read(len(data))
            yield data
        if size < self._blob.size_bytes:
            raise Failure(
                BAD_LAYER, f"the blob is truncated: {size} of {self._blob.size_bytes} bytes are there"
            )
        _compare(digest, self._blob.digest, "the blob")

    def _read_some(self) -> bytes:
        try:
            return os.read(self._blob.descriptor, _CHUNK_BYTES)
        except OSError as error:
            raise Failure(BAD_LAYER, f"the blob cannot be read: {error.strerror}") from error


class _Closed(Exception):
    """The reader needs no more chunks."""


def _new_digest(promised: str) -> hashlib._Hash:
    algorithm = promised.partition(":")[0]
    if algorithm not in _DIGESTS:
        raise Failure(BAD_LAYER, f"the digest {show_digest(promised)} is of an unknown kind")
    return hashlib.new(algorithm)


def _compare(digest: hashlib._Hash, promised: str, what: str) -> None:
    found = f"{promised.partition(':')[0]}:{digest.hexdigest()}"
    if found != promised:
        raise Failure(BAD_LAYER, f"{what} has the digest {found}, the image promises {show_digest(promised)}")


def show_digest(digest: str) -> str:
    return ascii(digest)[1:-1][:140]


def decompress(blob: Iterable[bytes]) -> Iterator[bytes]:
    """Return the archive of a blob: gzip, zstd, or not compressed. The first bytes decide, as in Docker.

    Raises:
        Failure: another compression, or damaged or truncated content.
    """
    parts = iter(blob)
    first = b""
    while len(first) < 6 and (part := next(parts, b"")):
        first += part
    whole = _chain(first, parts)
    for magic, name in _OTHERS.items():
        if first.startswith(magic):
            raise Failure(BAD_LAYER, f"the layer is compressed by {name}; gzip and zstd are supported")
    if first.startswith(_GZIP):
        return _gunzip(whole)
    if first.startswith(_ZSTD) or (first[:1] and first[0] & 0xF0 == 0x50 and first[1:4] == _ZSTD_SKIPPABLE):
        return _unzstd(whole)
    return whole


def _chain(first: bytes, parts: Iterator[bytes]) -> Iterator[bytes]:
    if first:
        yield first
    yield from parts


def _gunzip(parts: Iterator[bytes]) -> Iterator[bytes]:
    """Decompress all members of a gzip file."""
    member: zlib._Decompress | None = None
    try:
        for part in parts:
            data = part
            while data:
                if member is None:
                    member = zlib.decompressobj(wbits=31)
                chunk = member.decompress(data, _CHUNK_BYTES)
                if chunk:
                    yield chunk
                data = member.unconsumed_tail or member.unused_data
                if member.eof:
                    member = None
        # What zlib still holds back is at most the output of one call: the loop above took the rest.
        while member is not None and not member.eof and (chunk := member.decompress(b"", _CHUNK_BYTES)):
            yield chunk
    except zlib.error as error:
        raise Failure(BAD_LAYER, f"the gzip stream is damaged ({error})") from error
    if member is not None and not member.eof:
        raise Failure(BAD_LAYER, "the gzip stream is truncated")


def _unzstd(parts: Iterator[bytes]) -> Iterator[bytes]:
    """Decompress by the program zstd: before 3.14 the standard library has no zstd."""
    try:
        process = subprocess.Popen(
            ["zstd", "-q", "-d", "-c", _ZSTD_MEMORY],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
    except FileNotFoundError:
        raise Failure(HOST_LACKS, "zstd") from None
    failures: list[BaseException] = []
    stop = threading.Event()
    feeder = threading.Thread(target=_feed, args=(process, parts, failures, stop), daemon=True)
    feeder.start()
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        while chunk := os.read(process.stdout.fileno(), _CHUNK_BYTES):
            yield chunk
        feeder.join()
        said = process.stderr.read(2000)
        status = process.wait()
    finally:
        stop.set()
        process.kill()
        feeder.join()
        process.wait()
        for pipe in (process.stdout, process.stderr):
            pipe.close()
    if failures:
        raise failures[0]
    if status != 0:
        why = ascii(said.decode("utf-8", "replace").strip().rpartition("\n")[2])[1:-1][-200:]
        raise Failure(BAD_LAYER, f"the zstd stream is damaged or truncated ({why})")


def _feed(
    process: subprocess.Popen[bytes],
    parts: Iterator[bytes],
    failures: list[BaseException],
    stop: threading.Event,
) -> None:
    assert process.stdin is not None
    try:
        for part in parts:
            if stop.is_set():
                return
            # The rest of the blob is still read and checked if zstd has ended early.
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(part)
    except BaseException as error:
        failures.append(error)
    finally:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
