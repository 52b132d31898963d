"""What a hostile guest may not send to the outside."""

from __future__ import annotations

import socket
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bough.networks.uplink_filter import MAX_FRAME_BYTES, Sieve, is_allowed, relay

ADDRESSES = bytes(12)


def ipv4(destination: str) -> bytes:
    return ADDRESSES + b"\x08\x00" + bytes(16) + socket.inet_aton(destination) + b"data"


def ipv6(destination: str) -> bytes:
    return ADDRESSES + b"\x86\xdd" + bytes(24) + socket.inet_pton(socket.AF_INET6, destination) + b"data"


def framed(frame: bytes) -> bytes:
    return len(frame).to_bytes(4, "big") + frame


ALLOWED = [
    ipv4("192.0.2.1"),
    ipv4("255.255.255.255"),
    ipv4("10.0.0.127"),
    ipv6("2001:db8::1"),
    ipv6("ff02::1"),
    ipv6("fe80::1"),
    ADDRESSES + b"\x08\x06" + bytes(28),
]
DENIED = [
    ipv4("127.0.0.1"),
    ipv4("127.255.255.254"),
    ipv4("0.0.0.0"),
    ipv4("0.1.2.3"),
    ipv6("::1"),
    ipv6("::"),
    ipv6("::127.0.0.1"),
    ipv6("::ffff:127.0.0.1"),
    ipv6("::ffff:192.0.2.1"),
    ipv4("192.0.2.1")[:33],
    ipv6("2001:db8::1")[:53],
    ADDRESSES + b"\x81\x00\x00\x01" + ipv4("127.0.0.1")[12:],  # in a VLAN
    b"",
    b"short",
]


@pytest.mark.parametrize("frame", ALLOWED, ids=bytes.hex)
def test_allowed(frame: bytes) -> None:
    assert is_allowed(memoryview(frame))


@pytest.mark.parametrize("frame", DENIED, ids=bytes.hex)
def test_denied(frame: bytes) -> None:
    assert not is_allowed(memoryview(frame))


@given(st.lists(st.sampled_from(ALLOWED + DENIED)), st.integers(1, 50))
def test_a_stream_in_pieces(frames: list[bytes], size: int) -> None:
    stream = b"".join(map(framed, frames))
    sieve = Sieve()
    kept = b"".join(sieve.feed(stream[i : i + size]) for i in range(0, len(stream), size))
    assert kept == b"".join(framed(frame) for frame in frames if frame in ALLOWED)


@given(st.binary())
def test_garbage_is_never_passed_on(data: bytes) -> None:
    try:
        kept = Sieve().feed(data)
    except ValueError:
        return
    while kept:
        length = int.from_bytes(kept[:4], "big")
        assert is_allowed(memoryview(kept[4 : 4 + length]))
        kept = kept[4 + length :]


def test_an_endless_frame_is_refused() -> None:
    with pytest.raises(ValueError, match="frame"):
        Sieve().feed((MAX_FRAME_BYTES + 1).to_bytes(4, "big"))


def test_relay_carries_both_ways_and_ends_with_either_side() -> None:
    guest, guest_far = socket.socketpair()
    outside, outside_far = socket.socketpair()
    thread = threading.Thread(target=relay, args=(guest_far, outside_far, Sieve()))
    thread.start()
    with guest, outside, guest_far, outside_far:
        guest.sendall(framed(DENIED[0]) + framed(ALLOWED[0]))
        assert outside.recv(100) == framed(ALLOWED[0])
        big = bytes(3 << 20)  # more than is queued: it waits for the reader and loses nothing
        sender = threading.Thread(target=outside.sendall, args=(big,))
        sender.start()
        received = 0
        while received < len(big):
            received += len(guest.recv(1 << 16))
        sender.join()
        guest.close()
        thread.join(timeout=5)
    assert not thread.is_alive()
