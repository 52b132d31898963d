"""TCP connections that the agent makes for the host, and what listens for them."""

from __future__ import annotations

import _socket
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_IN_PROGRESS = 115
_LISTEN = b"0A"
#: All that listens comes first in the kernel's tables; nobody has more than this.
_MAX_LISTENERS = 10_000


def addresses(request: dict[str, object]) -> Iterator[tuple[str, int, int]]:
    """Where to connect to, one after the other: host, port, scope. Raises OSError for what is no address.

    Without a host: the loopback addresses, then whatever address something listens on at that port.
    """
    host, port = request.get("host") or "localhost", request.get("port")
    if not isinstance(host, str) or not isinstance(port, int) or not 0 < port < 65536:
        raise OSError(22, "expected an address and a port")
    if host != "localhost":
        yield host, port, 0
        return
    yield "127.0.0.1", port, 0
    yield "::1", port, 0
    for address, at in listeners():
        if at == port:
            text = _socket.inet_ntop(_socket.AF_INET if len(address) == 4 else _socket.AF_INET6, address)
            yield text, port, _scope_of(address)


def connect(places: Iterator[tuple[str, int, int]]) -> tuple[_socket.socket, bool]:
    """A socket that connects to the first place that can be connected to, and whether it still does so."""
    first: OSError | None = None
    for place in places:
        try:
            return _connect(*place)
        except OSError as error:
            first = first or error
    raise first or ConnectionRefusedError(111, "Connection refused")


def _connect(host: str, port: int, scope: int) -> tuple[_socket.socket, bool]:
    # Names would be resolved while everything else waits, so: addresses only.
    family = _socket.AF_INET6 if ":" in host else _socket.AF_INET
    try:
        _socket.inet_pton(family, host)
    except OSError:
        raise OSError(22, f"expected an IP address, got {host[:100]!r}") from None
    sock = _socket.socket(family, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC, 0)
    try:
        sock.setblocking(False)
        sock.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
        code = sock.connect_ex((host, port, 0, scope) if scope else (host, port))
        if code not in (0, _IN_PROGRESS):
            raise OSError(code, os.strerror(code), f"{host} port {port}")
    except OSError:
        sock.close()
        raise
    return sock, code != 0


def listeners() -> Iterator[tuple[bytes, int]]:
    """Address and port of each TCP socket that listens."""
    for path in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            table = open(path, "rb")  # noqa: PTH123, SIM115
        except OSError:
            continue  # a kernel without IPv6
        with table:
            table.readline()
            for line in table.readlines(_MAX_LISTENERS * 150):
                _, local, _, state, *_ = line.split(None, 4)
                if state != _LISTEN:
                    break
                address, _, port = local.partition(b":")
                yield _read_address(address), int(port, 16)


def _read_address(text: bytes) -> bytes:
    """Words of 32 bits, each in the byte order of the processor."""
    words = [int(text[at : at + 8], 16) for at in range(0, len(text), 8)]
    return b"".join(word.to_bytes(4, sys.byteorder) for word in words)


def _scope_of(address: bytes) -> int:
    """The index of the interface that has a link-local address; 0 for all others."""
    if len(address) != 16 or address[:2] != b"\xfe\x80":
        return 0
    with open("/proc/net/if_inet6", "rb") as table:  # noqa: PTH123
        for line in table:
            fields = line.split()
            if bytes.fromhex(fields[0].decode()) == address:
                return int(fields[1], 16)
    return 0
