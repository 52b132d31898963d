"""The SOCKS5 server's side of the protocol, over a socket pair."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from bough.client.socks import SocksRefusal, SocksServer, find_machine, read_request
from bough.errors import GuestRefused, NotFound

GREETING = b"\x05\x02\x00\x02"


def name_request(name: bytes, port: int, command: int = 1) -> bytes:
    return bytes((5, command, 0, 3, len(name))) + name + port.to_bytes(2, "big")


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(5)
        yield ours, theirs


@pytest.mark.parametrize(
    ("request_", "target"),
    [
        (name_request(b"db.shop", 5432), ("db.shop", 5432)),
        (b"\x05\x01\x00\x01\x0a\x01\x02\x03\x00\x50", ("10.1.2.3", 80)),
        (b"\x05\x01\x00\x04\xfd" + bytes(14) + b"\x01\x00\x50", ("fd00::1", 80)),
    ],
)
def test_a_request_is_read(
    pair: tuple[socket.socket, socket.socket], request_: bytes, target: tuple[str, int]
) -> None:
    ours, theirs = pair
    ours.sendall(GREETING + request_)
    assert read_request(theirs) == target
    assert ours.recv(2) == b"\x05\x00"


@pytest.mark.parametrize(
    ("request_", "code"), [(name_request(b"db", 80, command=2), 7), (b"\x05\x01\x00\x09", 8)]
)
def test_a_request_that_cannot_be_served(
    pair: tuple[socket.socket, socket.socket], request_: bytes, code: int
) -> None:
    ours, theirs = pair
    ours.sendall(GREETING + request_)
    with pytest.raises(SocksRefusal) as refusal:
        read_request(theirs)
    assert refusal.value.code == code


@pytest.mark.parametrize("greeting", [b"\x04\x01\x00", b"\x05\x01\x02", b"GET / HTTP/1.1\r\n" * 20])
def test_another_protocol_is_hung_up_on(pair: tuple[socket.socket, socket.socket], greeting: bytes) -> None:
    ours, theirs = pair
    ours.sendall(greeting)
    with pytest.raises(ConnectionError):
        read_request(theirs)


class Echo:
    """A tunnel that answers with what was sent."""

    def __init__(self) -> None:
        self._ours, self._theirs = socket.socketpair()

    def __enter__(self) -> Echo:
        return self

    def __exit__(self, *_: object) -> None:
        self._ours.close()
        self._theirs.close()

    def sendall(self, data: bytes) -> None:
        self._ours.sendall(data)

    def shutdown_write(self) -> None:
        self._ours.shutdown(socket.SHUT_WR)

    def recv(self, size: int) -> bytes:
        return self._theirs.recv(size)


class Machine:
    name = "shop-db"

    def tunnel(self, port: int) -> Echo:
        if port != 5432:
            raise GuestRefused("no program listens")
        return Echo()


class Project:
    """A project of one machine on one network."""

    name = "shop"
    machines: dict[str, Any] = {"db": Machine()}  # noqa: RUF012

    def info(self) -> Any:
        return SimpleNamespace(networks=[{"name": "back"}])

    def network(self, name: str) -> Any:
        card = {"machine": "shop-db", "names": ["db", f"db.{name}"], "ipv4": "10.1.2.3", "ipv6": "fd00::1"}
        return SimpleNamespace(info=lambda: SimpleNamespace(machines=[card]))


def test_a_machine_is_found_by_names_and_addresses() -> None:
    project: Any = Project()
    for host in ("db", "DB", "db.back", "db.back.", "10.1.2.3", "fd00::1"):
        assert find_machine(project, host) is project.machines["db"]
    with pytest.raises(NotFound):
        find_machine(project, "example.com")


def test_connections_are_carried_or_refused() -> None:
    server = SocksServer(Project(), "127.0.0.1", 0)  # type: ignore[arg-type]
    threading.Thread(target=server.serve, daemon=True).start()
    try:
        for request_, code in (
            (name_request(b"db.back", 5432), 0),
            (name_request(b"db.back", 80), 5),
            (name_request(b"example.com", 80), 4),
        ):
            with socket.create_connection(server.address, timeout=5) as client:
                client.sendall(GREETING + request_)
                answer = client.recv(2) + client.recv(10)
                assert answer[3] == code
                if code == 0:
                    client.sendall(b"hello")
                    client.shutdown(socket.SHUT_WR)
                    assert client.recv(5, socket.MSG_WAITALL) == b"hello"
                assert client.recv(1) == b""
    finally:
        server.close()
