"""DNS queries of a guest, and the frames with the answers."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bough.networks import uplink_dns
from bough.networks.uplink_dns import RESOLVER, Forwarder, parse_query, read_resolvers

MESSAGE = bytes.fromhex("beef01000001000000000000") + b"\x05bough\x04test\0\0\x01\0\x01"
ADDRESS = socket.inet_aton(RESOLVER)


def frame(
    message: bytes = MESSAGE, *, to: str = "10.0.2.3", port: int = 53, kind: int = 17, flags: int = 0
) -> bytes:
    datagram = struct.pack("!HHHH", 40001, port, 8 + len(message), 0) + message
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(datagram), 1, flags, 64, kind, 0)
    addresses = socket.inet_aton("10.0.2.15") + socket.inet_aton(to)
    return b"\x02" * 6 + b"\x04" * 6 + b"\x08\x00" + header + addresses + datagram


def is_query(data: bytes) -> bool:
    return parse_query(memoryview(data), ADDRESS) is not None


def test_what_is_a_query() -> None:
    assert is_query(frame())
    assert is_query(frame() + bytes(18))  # padded to Ethernet's minimum
    for other in (
        frame(to="10.0.2.2"),
        frame(port=54),
        frame(kind=6),
        frame(flags=0x2000),
        frame(flags=1),
        frame()[:-1],
        frame(MESSAGE[:11]),
        frame(MESSAGE[:2] + b"\x81" + MESSAGE[3:]),
        frame(bytes(5000)),
        frame()[:12] + b"\x86\xdd" + frame()[14:],
        b"",
    ):
        assert not is_query(other)


@given(st.binary(max_size=120), st.integers(0, 60))
def test_garbage(data: bytes, kept: int) -> None:
    parse_query(memoryview(frame()[:kept] + data), ADDRESS)


def test_resolvers(tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    text = "# comment\nsearch a\nnameserver 192.0.2.1 # x\nnameserver fe80::1%lo\nnameserver bad..name\n"
    path.write_text(text + "options x\nnameserver 192.0.2.4\n")
    found = [address for _, address in read_resolvers(str(path))]
    assert [str(address[0]).partition("%")[0] for address in found] == ["192.0.2.1", "fe80::1"]
    assert found[1][3] == 1
    path.write_text("")
    assert [address[:2] for _, address in read_resolvers(str(path))] == [("127.0.0.1", 53)]
    assert [address[:2] for _, address in read_resolvers(str(path / "none"))] == [("127.0.0.1", 53)]


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.settimeout(10)
        address = sock.getsockname()
        monkeypatch.setattr(uplink_dns, "read_resolvers", lambda: iter([(socket.AF_INET, address)]))
        yield sock


def test_an_answer(resolver: socket.socket) -> None:
    forwarder = Forwarder()
    assert forwarder.take(memoryview(frame()))
    query, peer = resolver.recvfrom(4096)
    assert query == MESSAGE
    resolver.sendto(b"\0\0" + MESSAGE[2:], peer)  # an answer to another query
    resolver.sendto(MESSAGE, peer)  # not an answer
    (waiting,) = forwarder.sockets()
    assert forwarder.answers([waiting]) == b""
    assert forwarder.answers([waiting]) == b""
    answer = MESSAGE[:2] + b"\x81\x80" + MESSAGE[4:]
    resolver.sendto(answer, peer)
    made = forwarder.answers([waiting])
    assert int.from_bytes(made[:4], "big") == len(made) - 4
    assert made[4:18] == b"\x04" * 6 + b"\x02" * 6 + b"\x08\x00"
    assert made[30:38] == socket.inet_aton("10.0.2.3") + socket.inet_aton("10.0.2.15")
    assert made[38:46] == struct.pack("!HHHH", 53, 40001, 8 + len(answer), 0)
    assert made[46:] == answer
    assert (forwarder.sockets(), forwarder.wait_s()) == ([], None)


def test_a_resolver_that_is_not_there(resolver: socket.socket) -> None:
    forwarder = Forwarder()
    resolver.close()
    assert forwarder.take(memoryview(frame()))
    (waiting,) = forwarder.sockets()
    forwarder.answers([waiting])
    assert forwarder.wait_s() == 0
    assert forwarder.answers([])[46:] == MESSAGE[:2] + b"\x81\x82" + bytes(8)


def test_queries_are_bounded(resolver: socket.socket) -> None:
    forwarder = Forwarder()
    for _ in range(300):
        assert forwarder.take(memoryview(frame()))
    assert len(forwarder.sockets()) == uplink_dns._MAX_PENDING
    forwarder.close()
    assert forwarder.sockets() == []
