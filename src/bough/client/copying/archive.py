"""The stream between the two ends of a copy: a tar archive in POSIX.1-2001 form (pax).

Standard library only, and no `tarfile`: one end runs in a guest, where `tarfile` takes 200 ms to load.
The reader treats every byte as hostile: each header is bounded, and only headers are kept in memory.

Beyond POSIX: extended attributes as `SCHILY.xattr.NAME` and holes in GNU's format 1.0, both as in GNU tar.
`BOUGH.linked` marks a file to which hard links may follow. Names that are not UTF-8 have `hdrcharset=BINARY`.
"""

from __future__ import annotations

import struct

from bough.errors import ProtocolError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

BLOCK = 512
CHUNK = 256 * 1024
#: A map of holes with more parts than this costs more than the zeros.
MOST_SEGMENTS = 10_000
#: All names and attributes of one entry together.
MOST_HEADER_BYTES = 1 << 20
_MOST_SIZE = 1 << 62
_HEADER = struct.Struct("100s8s8s8s12s12s8s1s100s8s32s32s8s8s155s12x")
_END = b"\0" * BLOCK
_XATTR = b"SCHILY.xattr."
_KINDS = {"file": b"0", "again": b"1", "link": b"2", "device": b"3", "directory": b"5", "pipe": b"6"}
_TYPES = {**{value: name for name, value in _KINDS.items()}, b"\0": "file", b"7": "file", b"4": "device"}


class Entry:
    """One file, directory or link.

    Attributes:
        kind: "directory", "file", "link", or "again" (a hard link to `link`); also "device" and "pipe".
        size: bytes of the content, holes included.
        segments: (begin, length) of each part with data; None for a file without holes.
        linked: hard links to this entry may follow.
    """

    def __init__(self, kind: str, path: bytes, mode: int = 0o644, mtime_ns: int = 0) -> None:
        self.kind = kind
        self.path = path
        self.mode = mode
        self.mtime_ns = mtime_ns
        self.uid = 0
        self.gid = 0
        self.size = 0
        self.link = b""
        self.xattrs: dict[bytes, bytes] = {}
        self.segments: list[tuple[int, int]] | None = None
        self.linked = False


# -- writing ------------------------------------------------------------------------------------------


def render_entry(entry: Entry) -> bytes:
    """Return the header of `entry` and its map of holes. The content follows, padded to whole blocks."""
    table = _render_map(entry.segments) if entry.segments is not None else b""
    size = entry.size if entry.segments is None else len(table) + sum(part[1] for part in entry.segments)
    records = b"".join(_render_record(key, value) for key, value in _records(entry, size))
    head = b""
    if records:
        head = _render_header(b"././@PaxHeader", b"x", len(records)) + records + padding(len(records))
    kind = _KINDS[entry.kind]
    path = entry.path + b"/" if entry.kind == "directory" else entry.path
    return head + _render_header(path, kind, size, entry) + table


def render_end() -> bytes:
    return _END * 2


def padding(size: int) -> bytes:
    return b"\0" * (-size % BLOCK)


def _records(entry: Entry, size: int) -> Iterator[tuple[bytes, bytes]]:
    """Return pax records for the values that do not fit into a ustar header."""
    long_path = len(entry.path) > 99 or not entry.path.isascii()
    long_link = len(entry.link) > 99 or not entry.link.isascii()
    if (long_path and not _is_text(entry.path)) or (long_link and not _is_text(entry.link)):
        yield b"hdrcharset", b"BINARY"
    if long_path:
        yield b"path", entry.path
    if long_link:
        yield b"linkpath", entry.link
    seconds, rest = divmod(entry.mtime_ns, 1_000_000_000)
    if rest or not 0 <= seconds < 8**11:
        yield b"mtime", _render_time(entry.mtime_ns)
    for name, number, most in ((b"size", size, 8**11), (b"uid", entry.uid, 8**7), (b"gid", entry.gid, 8**7)):
        if number >= most:
            yield name, b"%d" % number
    if entry.linked:
        yield b"BOUGH.linked", b"1"
    for name, value in entry.xattrs.items():
        yield _XATTR + name, value
    if entry.segments is not None:
        yield b"GNU.sparse.major", b"1"
        yield b"GNU.sparse.minor", b"0"
        yield b"GNU.sparse.name", entry.path
        yield b"GNU.sparse.realsize", b"%d" % entry.size


def _is_text(name: bytes) -> bool:
    try:
        name.decode()
    except UnicodeDecodeError:
        return False
    return True


def _render_time(mtime_ns: int) -> bytes:
    sign, (seconds, rest) = (b"-" if mtime_ns < 0 else b""), divmod(abs(mtime_ns), 1_000_000_000)
    return b"%s%d.%09d" % (sign, seconds, rest)


def _render_record(key: bytes, value: bytes) -> bytes:
    """Return `LENGTH KEY=VALUE`. LENGTH includes the digits of LENGTH."""
    rest = len(key) + len(value) + 3
    length = rest + len(b"%d" % rest)
    length = rest + len(b"%d" % length)
    return b"%d %s=%s\n" % (length, key, value)


def _render_header(path: bytes, kind: bytes, size: int, entry: Entry | None = None) -> bytes:
    mode, uid, gid, seconds, link = 0o644, 0, 0, 0, b""
    if entry is not None:
        mode, uid, gid, link = entry.mode & 0o7777, entry.uid, entry.gid, entry.link
        seconds = entry.mtime_ns // 1_000_000_000
    head = _HEADER.pack(
        path[:100] if len(path) <= 100 else path[:99],
        b"%07o" % mode,
        *(b"%07o" % (number if number < 8**7 else 0) for number in (uid, gid)),
        *(b"%011o" % (number if 0 <= number < 8**11 else 0) for number in (size, seconds)),
        b" " * 8,
        kind,
        link[:100],
        b"ustar\x0000",
        *(b"" for _ in range(5)),
    )
    return head[:148] + b"%06o\0 " % sum(head) + head[156:]


def _render_map(segments: list[tuple[int, int]]) -> bytes:
    """Return the map of GNU tar's PAX format 1.0, which precedes the data."""
    numbers = [len(segments), *(number for pair in segments for number in pair)]
    table = b"".join(b"%d\n" % number for number in numbers)
    return table + padding(len(table))


# -- reading ------------------------------------------------------------------------------------------


class Reader:
    """Entries of a stream that may be hostile: call `next`, then `content` if the content is wanted.

    Raises:
        ProtocolError: the stream is not an archive, or is cut off.
    """

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read = read
        #: Unread bytes of the last entry, and the padding after these bytes.
        self._left = 0
        self._fill = 0

    def next(self) -> Entry | None:
        """Return the next entry; None at the end of the archive."""
        self._skip()
        records: dict[bytes, bytes] = {}
        while True:
            head = self._exactly(BLOCK)
            if head == _END:
                return None
            fields = _parse_header(head)
            size, kind = _parse_octal(fields[4]), fields[7]
            if kind not in (b"x", b"g"):
                return self._make_entry(fields, records)
            if size > MOST_HEADER_BYTES:
                raise ProtocolError("the guest sent an archive with a header that is too long")
            content = self._exactly(size)
            self._exactly(-size % BLOCK)
            if kind == b"x":
                records = _parse_records(content)

    def content(self, entry: Entry) -> Iterator[tuple[int, bytes]]:
        """Yield the data of `entry` as (offset, data), without holes."""
        for begin, length in [(0, entry.size)] if entry.segments is None else entry.segments:
            position, end = begin, begin + length
            while position < end:
                data = self._take(min(CHUNK, end - position))
                if not data:
                    raise ProtocolError(f"the guest sent less of {entry.path[:200]!r} than its header states")
                yield position, data
                position += len(data)

    def _make_entry(self, fields: tuple[bytes, ...], records: dict[bytes, bytes]) -> Entry:
        name, mode, uid, gid, size, seconds, _, kind, link, magic, *_, prefix = fields
        if kind not in _TYPES:
            raise ProtocolError(f"the guest sent an archive with an entry of the unknown kind {kind!r}")
        path = _until_nul(name)
        if magic.startswith(b"ustar\0") and prefix.strip(b"\0"):
            path = _until_nul(prefix) + b"/" + path
        path = records.get(b"GNU.sparse.name", records.get(b"path", path))
        entry = Entry(_TYPES[kind], path, _parse_octal(mode) & 0o7777)
        entry.link = records.get(b"linkpath", _until_nul(link))
        entry.uid = _parse_number(records.get(b"uid"), _parse_octal(uid), 2**32 - 2)
        entry.gid = _parse_number(records.get(b"gid"), _parse_octal(gid), 2**32 - 2)
        entry.mtime_ns = _parse_time(records.get(b"mtime"), _parse_octal(seconds))
        entry.linked = b"BOUGH.linked" in records
        start = len(_XATTR)
        entry.xattrs = {key[start:]: value for key, value in records.items() if key.startswith(_XATTR)}
        length = _parse_number(records.get(b"size"), _parse_octal(size), _MOST_SIZE)
        if entry.kind == "file":
            entry.size, self._left, self._fill = length, length, -length % BLOCK
            if records.get(b"GNU.sparse.major") == b"1" and records.get(b"GNU.sparse.minor") == b"0":
                entry.size = _parse_number(records.get(b"GNU.sparse.realsize"), -1, _MOST_SIZE)
                entry.segments = self._read_map(entry)
        return entry

    def _read_map(self, entry: Entry) -> list[tuple[int, int]]:
        wrong = f"the guest sent {entry.path[:200]!r} with an invalid map of holes"
        numbers: list[int] = []
        text = b""
        wanted = 1
        while len(numbers) < wanted:
            block = self._take_block()
            *lines, text = (text + block).split(b"\n")
            numbers += [_parse_number(line, -1, _MOST_SIZE) for line in lines[: wanted - len(numbers)]]
            if wanted == 1 and numbers:
                wanted = 1 + 2 * numbers[0]
                numbers += [_parse_number(line, -1, _MOST_SIZE) for line in lines[1:wanted]]
            if len(text) > BLOCK or wanted > 1 + 2 * (MOST_SEGMENTS + 1):
                raise ProtocolError(wrong)
        segments = [(numbers[at], numbers[at + 1]) for at in range(1, wanted, 2)]
        end = 0
        for begin, length in segments:
            if begin < end or begin + length > entry.size:
                raise ProtocolError(wrong)
            end = begin + length
        if sum(length for _, length in segments) != self._left:
            raise ProtocolError(wrong)
        return segments

    def _take_block(self) -> bytes:
        parts = b""
        while len(parts) < BLOCK:
            data = self._take(min(self._left, BLOCK - len(parts)))
            if not data:
                raise ProtocolError("the guest sent an archive that is cut off")
            parts += data
        return parts

    def _take(self, size: int) -> bytes:
        data = self._read(size) if size else b""
        self._left -= len(data)
        return data

    def _skip(self) -> None:
        while self._left:
            if not self._take(min(CHUNK, self._left)):
                raise ProtocolError("the guest sent an archive that is cut off")
        self._exactly(self._fill)
        self._fill = 0

    def _exactly(self, size: int) -> bytes:
        parts = []
        while size:
            data = self._read(size)
            if not data:
                raise ProtocolError("the guest sent an archive that is cut off")
            parts.append(data)
            size -= len(data)
        return b"".join(parts)


def _parse_header(head: bytes) -> tuple[bytes, ...]:
    fields: tuple[bytes, ...] = _HEADER.unpack(head)
    if _parse_octal(fields[6]) != sum(head) - sum(fields[6]) + 8 * 32:
        raise ProtocolError("the guest sent data that is not an archive")
    return fields


def _parse_records(content: bytes) -> dict[bytes, bytes]:
    records = {}
    position = 0
    while position < len(content):
        digits = content[position : position + 20].partition(b" ")[0]
        length = _parse_number(digits, -1, len(content) - position)
        record = content[position + len(digits) + 1 : position + length]
        key, equals, value = record.partition(b"=")
        if not equals or not value.endswith(b"\n"):
            raise ProtocolError("the guest sent an archive with an invalid header")
        records[key] = value[:-1]
        position += length
    return records


def _parse_octal(text: bytes) -> int:
    digits = text.strip(b"\0 ")
    if digits.strip(b"01234567"):
        raise ProtocolError("the guest sent an archive with an invalid number")
    return int(digits or b"0", 8)


def _parse_number(text: bytes | None, default: int, most: int) -> int:
    if text is None and default >= 0:
        return default
    if text is None or not text.isdigit() or len(text) > 20 or int(text) > most:
        raise ProtocolError("the guest sent an archive with an invalid number")
    return int(text)


def _parse_time(text: bytes | None, seconds: int) -> int:
    """Return nanoseconds, limited to a range that every file system can keep."""
    exact = seconds * 1_000_000_000
    if text is not None:
        whole, _, rest = text.lstrip(b"-").partition(b".")
        if not whole.isdigit() or len(whole) > 12 or (rest and not rest.isdigit()):
            raise ProtocolError("the guest sent an archive with an invalid time")
        exact = int(whole) * 1_000_000_000 + int((rest + b"000000000")[:9])
        exact = -exact if text.startswith(b"-") else exact
    return max(-(2**31) * 1_000_000_000, min(exact, (2**33) * 1_000_000_000))


def _until_nul(field: bytes) -> bytes:
    return field.partition(b"\0")[0]
