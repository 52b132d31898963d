"""Keep an ephemeral machine or project, or a fault: the service ends all three when no client holds them."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING

from bough.errors import BoughError, NotFound, ServiceUnavailable

if TYPE_CHECKING:
    from bough.client.connection import Connection
    from bough.client.websocket import WebSocket
    from bough.contract.request import Request


class Hold:
    """Hold a machine, a project or a fault until `release`, or until this program ends in any way.

    The hold begins shortly after construction. Until then, the service waits for at most 30 s.
    """

    def __init__(
        self, connection: Connection, request: Request, name: str, socket: WebSocket | None = None
    ) -> None:
        self._connection = connection
        self._request = request
        self._released = threading.Event()
        self._socket = socket
        threading.Thread(target=self._stay, name=name, daemon=True).start()

    def _stay(self) -> None:
        while not self._released.is_set():
            socket = self._socket
            if socket is None:
                if not self._hold():
                    return
                continue
            with contextlib.suppress(BoughError):
                socket.receive()
            self._socket = None
            self._released.wait(0.2)

    def _hold(self) -> bool:
        """Connect. Return False if there is nothing to hold any more."""
        try:
            socket = self._connection.open(self._request)
        except NotFound:
            return False
        except (ServiceUnavailable, OSError):
            return not self._released.wait(0.3)
        except BoughError:
            return False
        self._socket = socket
        if self._released.is_set():
            socket.close()
        return True

    def release(self) -> None:
        self._released.set()
        socket = self._socket
        if socket is not None:
            socket.close()
