"""Serve the API over TCP: each request must carry the token of the BOUGH_HOME.

The Unix socket needs no token: the mode lets only the owner connect. TCP has no such mode. So a file readable
only by the owner holds a secret. Clients send the secret as `Authorization: Bearer <token>`. The traffic is
not encrypted: outside of the host's loopback, use a tunnel (ssh -L) or a proxy with TLS.
"""

from __future__ import annotations

import contextlib
import hmac
import ipaddress
import os
import secrets
import socket
import stat
from pathlib import Path

from starlette.types import ASGIApp, Receive, Scope, Send

from bough.errors import Conflict, HostLacks, InvalidInput, Unauthorized
from bough.service.answers import error_response

_TOKEN_BYTES = 32


class Gate:
    """Refuses every request without `token`, including WebSockets and the OpenAPI document."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app = app
        self._expected = f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket") and not self._is_allowed(scope):
            await self._refuse(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _is_allowed(self, scope: Scope) -> bool:
        given = [value for name, value in scope["headers"] if name.lower() == b"authorization"]
        return len(given) == 1 and hmac.compare_digest(given[0], self._expected)

    @staticmethod
    async def _refuse(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            # A close before the accept answers the upgrade request with 403.
            await send({"type": "websocket.close", "code": 1008})
            return
        error = Unauthorized(
            "the API over TCP requires a token", hint="send the content of BOUGH_HOME/token as a Bearer token"
        )
        answer = error_response(error)
        answer.headers["WWW-Authenticate"] = "Bearer"
        await answer(scope, receive, send)


def read_token(path: Path) -> str:
    """Return the token in `path`; create the file if necessary.

    Raises:
        HostLacks: other users can read the file, or the file holds no token.
    """
    with contextlib.suppress(FileExistsError):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_urlsafe(_TOKEN_BYTES) + "\n")
            file.flush()
            os.fsync(file.fileno())
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(descriptor) as file:
        info = os.fstat(file.fileno())
        token = file.read(4096).strip()
    if info.st_uid != os.geteuid() or stat.S_IMODE(info.st_mode) & 0o077:
        raise HostLacks(
            f"{path} can be read by others",
            hint=f"remove it, and the service makes a new token; or chmod 600 {path}",
        )
    if len(token) < 16 or not token.isascii() or not token.isprintable():
        raise HostLacks(f"{path} holds no token", hint="remove it, and the service makes a new token")
    return token


def bind_tcp(address: str) -> socket.socket:
    """Return a listening socket at "127.0.0.1:8500" or "[::1]:8500". Port 0 selects any free port.

    Raises:
        InvalidInput: the address does not have this form.
        Conflict: the service cannot listen at this address.
    """
    host, colon, port = address.rpartition(":")
    host = "127.0.0.1" if host == "localhost" else host.removeprefix("[").removesuffix("]")
    try:
        if not colon or not (port.isascii() and port.isdigit() and int(port) < 65536):
            raise ValueError
        family = socket.AF_INET6 if ipaddress.ip_address(host).version == 6 else socket.AF_INET
    except ValueError:
        raise InvalidInput(
            f"expected an address and a port like '127.0.0.1:8500', got {address[:80]!r}"
        ) from None
    try:
        listener = socket.create_server((host, int(port)), family=family, backlog=128)
    except OSError as error:
        raise Conflict(f"cannot listen at {address}: {error.strerror or error}") from error
    listener.setblocking(False)
    # Accepted connections inherit the option. asyncio sets the option only for sockets made with IPPROTO_TCP.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def url_of(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_loopback(listener: socket.socket) -> bool:
    return ipaddress.ip_address(listener.getsockname()[0]).is_loopback
