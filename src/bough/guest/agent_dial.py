"""TCP connections of the agent, made for the host, and the list of listening sockets."""

from __future__ import annotations

import _socket
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_IN_PROGRESS = 115
_LISTEN = b"0A"
#: Listening sockets come first in the kernel's tables. No guest has more sockets.
_MAX_LISTENERS = 10_000


def addresses(request: dict[str, object]) -> Iterator[tuple[str, int, int]]:
    """Yield the places to connect to, one after the other: host, port, scope.

    Without a host: the loopback addresses, then every address with a socket that listens on the port. Raises
    OSError if the request has no valid address and port.
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
    """Return a socket for the first place that accepts a connection, and whether the socket is still
    connecting.
    """
    first: OSError | None = None
    for place in places:
        try:
            return _connect(*place)
        except OSError as error:
            first = first or error
    raise first or ConnectionRefusedError(111, "Connection refused")


def _connect(host: str, port: int, scope: int) -> tuple[_socket.socket, bool]:
    # Addresses only: resolving a name would block everything else.
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
    """Yield address and port of each listening TCP socket."""
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
    """Decode an address: words of 32 bits, each in the processor's byte order."""
    words = [int(text[at : at + 8], 16) for at in range(0, len(text), 8)]
    return b"".join(word.to_bytes(4, sys.byteorder) for word in words)


def _scope_of(address: bytes) -> int:
    """Return the index of the interface with a link-local address; 0 for all other addresses."""
    if len(address) != 16 or address[:2] != b"\xfe\x80":
        return 0
    with open("/proc/net/if_inet6", "rb") as table:  # noqa: PTH123
        for line in table:
            fields = line.split()
            if bytes.fromhex(fields[0].decode()) == address:
                return int(fields[1], 16)
    return 0
