"""A tree of the host as a tar stream: modes, times to the nanosecond, links, holes."""

from __future__ import annotations

import os
import stat
import tarfile
from collections.abc import Callable
from typing import IO, Any, Literal

BLOCK = 512
_CHUNK = 256 * 1024
#: A map of holes with more parts than this costs more than the zeros.
_MAX_SEGMENTS = 10_000

Count = Callable[[int], None]


class Packer:
    """Writes entries to `stream`. Sockets, pipes and devices are left out and listed in `skipped`."""

    def __init__(self, stream: IO[bytes], count: Count = lambda _: None) -> None:
        self._stream = stream
        self._count = count
        self._seen: dict[tuple[int, int], str] = {}
        self.files = 0
        self.bytes = 0
        self.skipped: list[str] = []

    def add(self, path: str, name: str, *, follow: bool = False) -> None:
        """`path` with all below it, as `name`; `follow` a link at the top, never one below."""
        info = os.stat(path, follow_symlinks=follow)  # noqa: PTH116
        if stat.S_ISDIR(info.st_mode):
            self._header(self._entry(name + "/", info, tarfile.DIRTYPE))
            with os.scandir(path) as entries:
                names = sorted(entry.name for entry in entries)
            for inner in names:
                self.add(os.path.join(path, inner), f"{name}/{inner}")  # noqa: PTH118 (bytes survive)
        elif stat.S_ISREG(info.st_mode):
            self._add_file(path, name, info)
        elif stat.S_ISLNK(info.st_mode):
            entry = self._entry(name, info, tarfile.SYMTYPE)
            entry.linkname = os.readlink(path)  # noqa: PTH115
            self._header(entry)
            self.files += 1
        else:
            self.skipped.append(path)

    def add_stream(self, source: IO[bytes], name: str, size: int, mode: int, mtime_ns: int) -> None:
        entry = tarfile.TarInfo(name)
        entry.size, entry.mode = size, mode
        _set_time(entry, mtime_ns)
        self._header(entry)
        self._body(source, size)
        self.files += 1

    def close(self) -> None:
        """The end of the archive; the stream itself stays open."""
        self._stream.write(b"\0" * (2 * BLOCK))

    def _add_file(self, path: str, name: str, info: os.stat_result) -> None:
        entry = self._entry(name, info, tarfile.REGTYPE)
        key = (info.st_dev, info.st_ino)
        if info.st_nlink > 1 and key in self._seen:
            entry.type, entry.linkname = tarfile.LNKTYPE, self._seen[key]
            self._header(entry)
            self.files += 1
            return
        self._seen[key] = name
        # O_NONBLOCK: a pipe that was put in the file's place meanwhile does not hold us.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb", buffering=0) as file:
            size = os.fstat(descriptor).st_size
            segments = _find_segments(descriptor, size, info.st_blocks)
            if segments is None:
                entry.size = size
                self._header(entry)
                self._body(file, size)
            else:
                self._sparse(entry, file, size, segments)
        self.files += 1

    def _sparse(self, entry: tarfile.TarInfo, file: Any, size: int, segments: list[tuple[int, int]]) -> None:
        """As GNU tar's manual describes PAX format 1.0: the map is the beginning of the data."""
        table = "\n".join(map(str, [len(segments), *(number for pair in segments for number in pair)]))
        content = table.encode() + b"\n"
        content += b"\0" * (-len(content) % BLOCK)
        entry.size = len(content) + sum(length for _, length in segments)
        entry.pax_headers = {
            **entry.pax_headers,
            "GNU.sparse.major": "1",
            "GNU.sparse.minor": "0",
            "GNU.sparse.name": entry.name,
            "GNU.sparse.realsize": str(size),
        }
        self._header(entry)
        self._stream.write(content)
        for begin, length in segments:
            file.seek(begin)
            self._copy(file, length)
            self._count(length)
        self._pad(entry.size)
        self.bytes += size

    def _entry(self, name: str, info: os.stat_result, kind: bytes) -> tarfile.TarInfo:
        entry = tarfile.TarInfo(name)
        entry.type = kind
        entry.mode = stat.S_IMODE(info.st_mode)
        _set_time(entry, info.st_mtime_ns)
        return entry

    def _header(self, entry: tarfile.TarInfo) -> None:
        # A name that is no UTF-8 has no place in a PAX header; GNU's form takes any bytes.
        try:
            (entry.name + entry.linkname).encode()
            form: Literal[1, 2] = 2  # tarfile.PAX_FORMAT
        except UnicodeEncodeError:
            form = 1  # tarfile.GNU_FORMAT
            entry.mtime = int(float(entry.pax_headers.get("mtime", entry.mtime)))
        self._stream.write(entry.tobuf(form, "utf-8", "surrogateescape"))

    def _body(self, file: IO[bytes], size: int) -> None:
        self._copy(file, size, count=True)
        self._pad(size)
        self.bytes += size

    def _copy(self, file: IO[bytes], length: int, *, count: bool = False) -> None:
        while length:
            data = file.read(min(_CHUNK, length))
            if not data:
                # It shrank while it was read; the header has promised its size.
                self._stream.write(b"\0" * length)
                return
            self._stream.write(data)
            length -= len(data)
            if count:
                self._count(len(data))

    def _pad(self, size: int) -> None:
        self._stream.write(b"\0" * (-size % BLOCK))


def _set_time(entry: tarfile.TarInfo, mtime_ns: int) -> None:
    seconds, rest = divmod(mtime_ns, 1_000_000_000)
    entry.mtime = seconds
    if rest or seconds < 0:
        exact = f"{mtime_ns / 1e9:.9f}" if seconds < 0 else f"{seconds}.{rest:09d}"
        entry.pax_headers = {**entry.pax_headers, "mtime": exact}


def _find_segments(descriptor: int, size: int, blocks: int) -> list[tuple[int, int]] | None:
    """Where there is data; None for a file without holes."""
    if blocks * BLOCK >= size or size < 64 * 1024:
        return None
    segments: list[tuple[int, int]] = []
    position = 0
    while position < size and len(segments) < _MAX_SEGMENTS:
        try:
            begin = os.lseek(descriptor, position, os.SEEK_DATA)
        except OSError:  # ENXIO: nothing but a hole follows
            break
        position = min(os.lseek(descriptor, begin, os.SEEK_HOLE), size)
        segments.append((begin, position - begin))
    os.lseek(descriptor, 0, os.SEEK_SET)
    if len(segments) >= _MAX_SEGMENTS or sum(length for _, length in segments) >= size:
        return None
    return [*segments, (size, 0)]
