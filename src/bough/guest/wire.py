"""The protocol between host and agent: frames and values (docs/agent.md).

This module runs on both sides: standard library only, Python 3.7, and no import that costs an emulated guest
time (json alone costs 0.1 s there). A frame is

    mark u16 | kind u8 | stream u8 | nonce u32 | session u32 | length u32 | payload | nonce u32

little-endian. The final nonce distinguishes a whole frame from a frame that was cut off by the end of a
service or by a fork. Structured payloads are CBOR (RFC 8949), definite lengths only.
"""

from __future__ import annotations

from struct import Struct

VERSION = 1

HEADER = Struct("<HBBIII")
TRAILER = Struct("<I")
MARK = 0xB06B
# A virtio port accepts 32 KiB in one write. A frame up to 32 KiB leaves completely or not at all.
MAX_FRAME = 32 * 1024
MAX_PAYLOAD = MAX_FRAME - HEADER.size - TRAILER.size
# Precedes each frame of a handshake. A reader out of step searches for SYNC. SYNC has the length of a header,
# and does not begin with MARK.
SYNC = b"\x00\xffbough\xfe\x1a sync\r\n"
PADDING = bytes(MAX_FRAME)

READY = 1  # guest: an agent started; nonce 0
HELLO = 2  # host: values; a new nonce ends all earlier sessions
WELCOME = 3  # guest: values
PING = 4  # host: up to 64 bytes
PONG = 5  # guest: the same bytes
CALL = 6  # host: values {"operation", "arguments"}; stream 1: more of it follows
RESULT = 7  # guest: values; stream 1: more of it follows
PROGRESS = 8  # guest: values {"step", "fraction", "detail"}
ERROR = 9  # guest: values {"message", "errno"}; the end of a call, exec or dial
EXEC = 10  # host: values; opens a session
DIAL = 11  # host: values {"host", "port", "window"}; opens a session
OPENED = 12  # guest: values; the command runs, or the connection is open
DATA = 13  # both: bytes of a stream
EOF = 14  # both: end of that stream
CREDIT = 15  # both: u32, number of further bytes that may be sent
STOP = 16  # guest: no process reads that stream any more
SIGNAL = 17  # host: name of a signal, "TERM"
RESIZE = 18  # host: rows u16, columns u16
ABORT = 19  # host: end the session; stream 1: after the data that was sent before
EXIT = 20  # guest: values {"code"} or {"signal"}; the end of a session
LAST_KIND = EXIT

# A DATA frame uses credit for its length plus this much. A queued frame costs its reader memory besides its
# bytes, so this bounds a flood of tiny frames too.
FRAME_COST = 64
CREDIT_PAYLOAD = Struct("<I")
SIZE_PAYLOAD = Struct("<HH")

#: Stream number of an ABORT.
AFTER_DATA = 1

STDIN = 0
STDOUT = 1
STDERR = 2

HEADER_SIZE = HEADER.size
_OVERHEAD = HEADER.size + TRAILER.size
_PAGE = 4096
_CAPACITY = 8 * MAX_FRAME


class WireError(Exception):
    """Bytes that are not a valid frame or value."""


def pack(kind: int, nonce: int, session: int = 0, payload: bytes = b"", stream: int = 0) -> bytes:
    """Return one frame. Raises ValueError if `payload` is longer than MAX_PAYLOAD."""
    if len(payload) > MAX_PAYLOAD:
        raise ValueError(f"payload of {len(payload)} bytes does not fit a frame")
    header = HEADER.pack(MARK, kind, stream, nonce, session, len(payload))
    return b"".join((header, payload, TRAILER.pack(nonce)))


def pack_parts(kind: int, nonce: int, session: int, payload: bytes) -> list[bytes]:
    """Return a payload of any length as frames of `kind`: all but the last have stream 1."""
    cuts = range(0, max(len(payload), 1), MAX_PAYLOAD)
    parts = [payload[cut : cut + MAX_PAYLOAD] for cut in cuts]
    return [pack(kind, nonce, session, part, int(part is not parts[-1])) for part in parts]


class FrameReader:
    """Cuts a stream of bytes into frames, without copying them.

    Out of step (at first, or after bytes that are not a frame) the reader drops everything before `pattern`,
    which begins with SYNC. It holds at most _CAPACITY bytes of any input.

    Attributes:
        pattern: bytes to search for while out of step.
        in_step: the last bytes were whole frames.
    """

    def __init__(self, pattern: bytes) -> None:
        self.pattern = pattern
        self.in_step = False
        self._buffer = bytearray(_CAPACITY)
        self._view = memoryview(self._buffer)
        self._pages = [self._view[at : at + _PAGE] for at in range(0, _CAPACITY, _PAGE)]
        self._start = 0
        self._end = 0

    def reset(self) -> None:
        """Drop everything: another stream begins."""
        self.in_step = False
        self._start = self._end = 0

    def room(self) -> memoryview:
        """Return the buffer for the next bytes, never empty. Then report their number with `added`."""
        self._make_room()
        return self._view[self._end :]

    def pages(self) -> list[memoryview]:
        """Return the same as room(), page by page: a virtio port fills one page for each of
        readv's buffers.
        """
        self._make_room()
        if self._end % _PAGE:
            return [self._view[self._end :]]
        return self._pages[self._end // _PAGE :]

    def _make_room(self) -> None:
        if self._start == self._end:
            self._start = self._end = 0
        elif self._end > _CAPACITY - MAX_FRAME:
            held = self._end - self._start
            # Move to the end of a page, so that later bytes stay aligned to pages.
            start = -held % _PAGE
            self._buffer[start : start + held] = self._buffer[self._start : self._end]
            self._start, self._end = start, start + held

    def added(self, count: int) -> None:
        self._end += count

    def holds(self, data: bytes) -> bool:
        return self._buffer.find(data, self._start, self._end) >= 0

    def next(self) -> tuple[int, int, int, int, memoryview] | None:
        """Return (kind, stream, nonce, session, payload), or None until more bytes come.

        The payload is valid until the next call of room() or pages().
        """
        while self.in_step or self._find_step():
            start = self._start
            held = self._end - start
            if held < HEADER_SIZE:
                return None
            mark, kind, stream, nonce, session, length = HEADER.unpack_from(self._buffer, start)
            if mark != MARK or length > MAX_PAYLOAD or not 0 < kind <= LAST_KIND:
                if self._buffer[start : start + len(SYNC)] == SYNC:
                    self._start += len(SYNC)
                else:
                    self.in_step = False
                continue
            if held < length + _OVERHEAD:
                return None
            end = start + HEADER_SIZE + length
            if TRAILER.unpack_from(self._buffer, end)[0] != nonce:
                # The frame was cut off, and the next frame may begin inside of it.
                self._start += 1
                self.in_step = False
                continue
            self._start = end + TRAILER.size
            return kind, stream, nonce, session, self._view[start + HEADER_SIZE : end]
        return None

    def _find_step(self) -> bool:
        at = self._buffer.find(self.pattern, self._start, self._end)
        if at < 0:
            self._start = max(self._start, self._end - len(self.pattern) + 1)
            return False
        self._start = at + len(SYNC)
        self.in_step = True
        return True


# Values: None, bool, int (64 bit), float, bytes, str, list, dict with str keys.

MAX_DEPTH = 8
MAX_ITEMS = 20_000
_FLOAT = Struct(">d")
_SIZES = {24: Struct(">B"), 25: Struct(">H"), 26: Struct(">I"), 27: Struct(">Q")}
_SIMPLE = {20: False, 21: True, 22: None}


def encode(value: object) -> bytes:
    """Encode a value as CBOR. A str that is not UTF-8 (a file name) becomes bytes."""
    parts: list[bytes] = []
    _encode(value, parts)
    return b"".join(parts)


def extend_map(encoded: bytes, key: str, value: object) -> bytes:
    """Return an encoded map of up to 22 pairs with one more pair."""
    if not 0xA0 <= encoded[0] < 0xB7:
        raise WireError("too many pairs")
    return b"".join((bytes((encoded[0] + 1,)), encoded[1:], encode(key), encode(value)))


def _head(major: int, number: int) -> bytes:
    if number < 24:
        return bytes((major << 5 | number,))
    for code, size in _SIZES.items():
        if number < 1 << 8 * size.size:
            return bytes((major << 5 | code,)) + size.pack(number)
    raise WireError("a number does not fit 64 bits")


def _encode(value: object, parts: list[bytes]) -> None:
    if isinstance(value, str):
        try:
            data = value.encode()
            parts.append(_head(3, len(data)))
        except UnicodeEncodeError:
            data = value.encode("utf-8", "surrogateescape")
            parts.append(_head(2, len(data)))
        parts.append(data)
    elif value is None or isinstance(value, bool):
        parts.append(b"\xf6" if value is None else b"\xf5" if value else b"\xf4")
    elif isinstance(value, int):
        parts.append(_head(0, value) if value >= 0 else _head(1, -1 - value))
    elif isinstance(value, float):
        parts.append(b"\xfb" + _FLOAT.pack(value))
    elif isinstance(value, (bytes, bytearray, memoryview)):
        parts.append(_head(2, len(value)))
        parts.append(bytes(value))
    elif isinstance(value, (list, tuple)):
        parts.append(_head(4, len(value)))
        for item in value:
            _encode(item, parts)
    elif isinstance(value, dict):
        parts.append(_head(5, len(value)))
        for key, item in value.items():
            _encode(str(key), parts)
            _encode(item, parts)
    else:
        raise TypeError(f"cannot send {type(value).__name__!r}")


def decode(data: bytes | memoryview) -> object:
    """Decode the one value in `data`. Raises WireError for anything else, too deep, or with too
    many parts.
    """
    decoder = _Decoder(bytes(data))
    value = decoder.value(MAX_DEPTH)
    if decoder.at != len(decoder.data):
        raise WireError("bytes after the value")
    return value


def decode_map(data: bytes | memoryview) -> dict[str, object]:
    """Decode a payload that must be a map."""
    value = decode(data)
    if not isinstance(value, dict):
        raise WireError("expected a map")
    return value


class _Decoder:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0
        self.items = 0

    def value(self, depth: int) -> object:  # noqa: PLR0911 - one for each major type
        self.items += 1
        if depth < 0 or self.items > MAX_ITEMS:
            raise WireError("too deep or too many parts")
        first = self.take(1)[0]
        major, code = first >> 5, first & 31
        if major == 7:
            return self.simple(code)
        number = self.number(code)
        if major == 0:
            return number
        if major == 1:
            return -1 - number
        if major == 2:
            return self.take(number)
        if major == 3:
            return self.take(number).decode("utf-8", "replace")
        if major == 4:
            return [self.value(depth - 1) for _ in range(self.count(number))]
        if major == 5:
            # No comprehension: before Python 3.8, comprehensions evaluate the value first.
            pairs: dict[str, object] = {}
            for _ in range(self.count(number)):
                key = self.key()
                pairs[key] = self.value(depth - 1)
            return pairs
        raise WireError("tags are not used")

    def take(self, count: int) -> bytes:
        end = self.at + count
        if end > len(self.data):
            raise WireError("the value is cut off")
        taken = self.data[self.at : end]
        self.at = end
        return taken

    def count(self, number: int) -> int:
        # Each part has at least one byte: a larger count is false, and is refused before any allocation.
        if number > len(self.data) - self.at:
            raise WireError("the value is cut off")
        return number

    def number(self, code: int) -> int:
        if code < 24:
            return code
        size = _SIZES.get(code)
        if size is None:
            raise WireError("indefinite lengths are not used")
        number: int = size.unpack(self.take(size.size))[0]
        return number

    def key(self) -> str:
        key = self.value(0)
        if not isinstance(key, str):
            raise WireError("keys are text")
        return key

    def simple(self, code: int) -> object:
        if code == 27:
            number: float = _FLOAT.unpack(self.take(8))[0]
            return number
        if code in _SIMPLE:
            return _SIMPLE[code]
        raise WireError(f"unknown simple value {code}")
