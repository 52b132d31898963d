"""Tell the handler of a WebSocket when the client disconnects.

uvicorn reads no more from a client while the handler has not taken the last message. In this state uvicorn
does not notice the death of a client. Without this module, a command that reads no input would continue
without a client.
"""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import WebSocket
from uvicorn.protocols.websockets.wsproto_impl import WSProtocol

from bough.hangup import Hangup

_EXTENSION = "bough.departure"


class StreamProtocol(WSProtocol):
    """uvicorn's protocol for a WebSocket, with an event in the scope for `departure`."""

    _hangup: Hangup

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._hangup = Hangup(transport.get_extra_info("socket"))

    def connection_lost(self, exc: Exception | None) -> None:
        self._hangup.close()
        self._hangup.seen.set()
        super().connection_lost(exc)

    def handle_connect(self, event: Any) -> None:
        super().handle_connect(event)
        extensions: Any = self.scope["extensions"]
        extensions[_EXTENSION] = self._hangup.seen


def departure(socket: WebSocket) -> asyncio.Event:
    """Return an event that is set when the client disconnects for any reason.

    Earlier messages may still wait.
    """
    event = socket.scope.get("extensions", {}).get(_EXTENSION)
    return event if isinstance(event, asyncio.Event) else asyncio.Event()
