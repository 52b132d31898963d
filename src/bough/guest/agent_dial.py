"""TCP connections that the agent makes for the host."""

from __future__ import annotations

import _socket

_IN_PROGRESS = 115


def connect(request: dict[str, object]) -> tuple[_socket.socket, bool]:
    """A socket that connects, and whether it still does so; OSError if it cannot."""
    host, port = request.get("host") or "127.0.0.1", request.get("port")
    if not isinstance(host, str) or not isinstance(port, int) or not 0 < port < 65536:
        raise OSError(22, "expected an address and a port")
    if host == "localhost":
        host = "127.0.0.1"
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
        code = sock.connect_ex((host, port))
        if code not in (0, _IN_PROGRESS):
            import os

            raise OSError(code, os.strerror(code), f"{host} port {port}")
    except OSError:
        sock.close()
        raise
    return sock, code != 0
