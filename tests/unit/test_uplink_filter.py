"""Frames that a hostile guest must not send outside."""

from __future__ import annotations

import select
import socket
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bough.networks import uplink_filter
from bough.networks.frame_stream import MAX_FRAME_BYTES
from bough.networks.uplink_filter import Sieve, Uplink, has_default_route, is_allowed

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


def test_frames_are_carried_both_ways_until_the_guest_ends() -> None:
    guest, guest_far = socket.socketpair()
    outside, outside_far = socket.socketpair()
    thread = threading.Thread(target=Uplink(guest_far, lambda: outside_far).run, daemon=True)
    thread.start()
    with guest, outside, guest_far, outside_far:
        guest.sendall(framed(DENIED[0]) + framed(ALLOWED[0]))
        assert outside.recv(100) == framed(ALLOWED[0])
        # more than the queue holds: the writer waits for the reader and loses nothing
        big = framed(bytes(60_000)) * 50
        sender = threading.Thread(target=outside.sendall, args=(big,))
        sender.start()
        received = 0
        while received < len(big):
            received += len(guest.recv(1 << 16))
        sender.join()
        guest.close()
        thread.join(timeout=5)
    assert not thread.is_alive()


def test_an_outside_that_ends_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A partial frame of the ended process does not reach the guest."""
    monkeypatch.setattr(uplink_filter, "_BETWEEN_STARTS_S", 0.01)
    guest, guest_far = socket.socketpair()
    pairs = [socket.socketpair() for _ in range(3)]
    left = iter([far for _, far in pairs])
    thread = threading.Thread(target=Uplink(guest_far, lambda: next(left)).run, daemon=True)
    thread.start()
    with guest, guest_far:
        for outside, _ in pairs:
            while not select.select([outside], [], [], 0.1)[0]:
                guest.sendall(framed(ALLOWED[0]))  # frames for the ended process are lost
            assert outside.recv(len(framed(ALLOWED[0]))) == framed(ALLOWED[0])
            outside.sendall(framed(b"whole") + framed(b"cut off")[:-3])
            assert guest.recv(100) == framed(b"whole")
            outside.close()
        guest.close()
        thread.join(timeout=5)
    assert not thread.is_alive()
    for _, far in pairs:
        far.close()


@pytest.mark.parametrize(
    ("name", "text", "has"),
    [
        ("route", "eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n", True),
        ("route", "eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n", False),
        ("route", "", False),
    ],
)
def test_default_routes(tmp_path: Path, name: str, text: str, has: bool) -> None:
    (tmp_path / name).write_text("Iface\tDestination\tGateway ...\n" + text)
    assert has_default_route(str(tmp_path / name)) is has
    assert not has_default_route(str(tmp_path / "none"))


@pytest.mark.parametrize(("line", "has"), [("0" * 32 + " 00", True), ("fd" + "0" * 30 + " 40", False)])
def test_default_routes_of_ipv6(tmp_path: Path, line: str, has: bool) -> None:
    rest = "0" * 32 + " 00 " + "fd" + "0" * 30 + " 00000400 00000003 00000000 00000003"
    (tmp_path / "ipv6_route").write_text(f"{line} {rest} eth0\n{'0' * 32} 00 {rest} lo\n")
    assert has_default_route(str(tmp_path / "ipv6_route")) is has
