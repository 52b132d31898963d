"""The API over TCP: only with the token of this BOUGH_HOME, in every request.

The Unix socket needs none: its mode lets nobody but its owner connect. TCP has no such mode, so there is one
secret, in a file that only its owner reads, sent as `Authorization: Bearer <token>`. There is no encryption:
beyond the host's own loopback it takes a tunnel (ssh -L) or a proxy that speaks TLS.
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
    """Lets through what carries `token`, and nothing else: not the OpenAPI document, not a WebSocket."""

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
            # Before it is accepted, a close is the answer 403 to its upgrade request.
            await send({"type": "websocket.close", "code": 1008})
            return
        error = Unauthorized(
            "the API over TCP wants its token", hint="send the content of BOUGH_HOME/token as a Bearer token"
        )
        answer = error_response(error)
        answer.headers["WWW-Authenticate"] = "Bearer"
        await answer(scope, receive, send)


def read_token(path: Path) -> str:
    """The token in `path`, made at first.

    Raises:
        HostLacks: others than its owner can read the file, or it holds none.
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
            f"{path} can be read by others", hint=f"remove it: a new token is made; or chmod 600 {path}"
        )
    if len(token) < 16 or not token.isascii() or not token.isprintable():
        raise HostLacks(f"{path} holds no token", hint="remove it: a new one is made")
    return token


def bind_tcp(address: str) -> socket.socket:
    """A listening socket at "127.0.0.1:8500", "[::1]:8500"; port 0 takes any free one.

    Raises:
        InvalidInput: it is no address of that form.
        Conflict: it cannot be listened at.
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
    return listener


def url_of(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_loopback(listener: socket.socket) -> bool:
    return ipaddress.ip_address(listener.getsockname()[0]).is_loopback
