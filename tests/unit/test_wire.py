"""Frames and values, including those of a hostile peer."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bough.guest import wire

NONCE = 0x12345678
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.binary(max_size=50)
    | st.text(max_size=50),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=10), inner, max_size=5),
    max_leaves=20,
)


def feed(reader: wire.FrameReader, data: bytes) -> list[tuple[int, int, int, int, bytes]]:
    """Return all frames from `data`, fed as the reader has room."""
    frames = []
    rest = memoryview(data)
    while rest:
        room = reader.room()
        part = rest[: len(room)]
        room[: len(part)] = part
        reader.added(len(part))
        rest = rest[len(part) :]
        while (frame := reader.next()) is not None:
            *head, payload = frame
            frames.append((*head, bytes(payload)))
    return frames


def in_step() -> wire.FrameReader:
    reader = wire.FrameReader(wire.SYNC)
    feed(reader, wire.SYNC + wire.pack(wire.READY, 0))
    return reader


def ping(payload: bytes) -> bytes:
    return wire.pack(wire.PING, NONCE, 0, payload)


@given(VALUES)
def test_values_come_back(value: object) -> None:
    assert wire.decode(wire.encode(value)) == value


@given(st.binary(max_size=300))
def test_any_bytes_are_a_value_or_refused(data: bytes) -> None:
    with contextlib.suppress(wire.WireError):
        wire.decode(data)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x81" * 50 + b"\x00",  # lists in lists
        b"\x9b" + b"\xff" * 8,  # a list of 2^64 - 1
        b"\x5b" + b"\x7f" + b"\xff" * 7,  # bytes without end
        b"\xbf\xff",  # an indefinite length
        b"\xc0\x00",  # a tag
        b"\xa1\x00\x00",  # a key that is no text
        b"\x00\x00",  # more than one value
        b"\xf8\x20",
    ],
)
def test_what_is_no_value_is_refused(data: bytes) -> None:
    with pytest.raises(wire.WireError):
        wire.decode(data)


def test_cbor_as_in_the_standard() -> None:
    """Examples of RFC 8949, appendix A."""
    assert wire.encode({"a": 1, "b": [2, 3]}) == bytes.fromhex("a26161016162820203")
    assert wire.encode(-1000) == bytes.fromhex("3903e7")
    assert wire.encode(1000000000000) == bytes.fromhex("1b000000e8d4a51000")
    assert wire.encode(1.1) == bytes.fromhex("fb3ff199999999999a")
    assert wire.encode([False, True, None]) == bytes.fromhex("83f4f5f6")


def test_a_name_that_is_no_utf8_is_sent_as_bytes() -> None:
    assert wire.decode(wire.encode(b"\xff".decode("utf-8", "surrogateescape"))) == b"\xff"


@pytest.mark.parametrize("pairs", [0, 1, 22])
def test_a_map_and_one_more_pair(pairs: int) -> None:
    values = {f"k{number}": number for number in range(pairs)}
    longer = wire.extend_map(wire.encode(values), "token", b"x")
    assert longer == wire.encode({**values, "token": b"x"})


@pytest.mark.parametrize("value", [{str(number): 0 for number in range(23)}, [], 1, None])
def test_what_no_pair_can_be_added_to(value: object) -> None:
    with pytest.raises(wire.WireError):
        wire.extend_map(wire.encode(value), "token", b"x")


def test_too_much_for_a_frame() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        wire.pack(wire.DATA, NONCE, 1, bytes(wire.MAX_PAYLOAD + 1))
    assert len(wire.pack(wire.DATA, NONCE, 1, bytes(wire.MAX_PAYLOAD))) == wire.MAX_FRAME


@pytest.mark.parametrize("size", [0, 1, wire.MAX_PAYLOAD, wire.MAX_PAYLOAD + 1, 5 * wire.MAX_PAYLOAD])
def test_parts_of_a_long_payload(size: int) -> None:
    frames = feed(in_step(), b"".join(wire.pack_parts(wire.CALL, NONCE, 7, bytes(size))))
    assert sum(len(frame[4]) for frame in frames) == size
    assert [frame[1] for frame in frames] == [1] * (len(frames) - 1) + [0]


@given(st.lists(st.binary(max_size=2000), max_size=20), st.integers(1, 5000))
def test_frames_come_whole_however_they_are_cut(payloads: list[bytes], cut: int) -> None:
    data = b"".join(map(ping, payloads))
    reader = in_step()
    frames = [frame for at in range(0, len(data), cut) for frame in feed(reader, data[at : at + cut])]
    assert [frame[4] for frame in frames] == payloads
    assert reader.in_step


@given(st.binary(max_size=5000))
def test_any_bytes_before_a_greeting_are_skipped(garbage: bytes) -> None:
    pattern = wire.SYNC + wire.pack(wire.HELLO, NONCE)[:8]
    reader = wire.FrameReader(pattern)
    frames = feed(reader, garbage + wire.SYNC + wire.pack(wire.HELLO, NONCE, 0, b"hello"))
    assert frames[-1] == (wire.HELLO, 0, NONCE, 0, b"hello")


@given(st.binary(max_size=3000), st.integers(0, wire.MAX_PAYLOAD + 19))
def test_a_frame_that_was_cut_off_swallows_no_padded_greeting(payload: bytes, length: int) -> None:
    reader = in_step()
    frame = wire.pack(wire.DATA, 0x99999999, 5, payload.ljust(wire.MAX_PAYLOAD, b"x"))
    greeting = wire.SYNC + wire.pack(wire.HELLO, NONCE, 0, b"hello")
    frames = feed(reader, frame[:length] + greeting + wire.PADDING + greeting)
    assert (wire.HELLO, 0, NONCE, 0, b"hello") in frames
    assert all(frame[0] == wire.HELLO for frame in frames)


@given(
    st.lists(st.binary(max_size=1000) | st.sampled_from([wire.SYNC, ping(b"x"), wire.PADDING]), max_size=10)
)
def test_no_bytes_break_the_reader(parts: list[bytes]) -> None:
    reader = in_step()
    feed(reader, b"".join(parts))
    assert len(reader.room()) > 0
    frames = feed(reader, wire.PADDING + wire.SYNC + ping(b"still here"))
    assert frames[-1][4] == b"still here"


def test_pages_are_aligned_for_a_virtio_port() -> None:
    reader = in_step()
    pages = reader.pages()
    assert {len(page) for page in pages} == {4096}
    pages[0][:10] = b"0123456789"
    reader.added(10)
    assert len(reader.pages()) == 1
