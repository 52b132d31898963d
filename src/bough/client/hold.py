"""Keeps an ephemeral machine alive: the service deletes it when nobody holds it any more."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING

from bough.client.connection import Connection, path_of
from bough.errors import BoughError, NotFound, ServiceUnavailable

if TYPE_CHECKING:
    from bough.client.websocket import WebSocket


class Hold:
    """From construction until `release`, or the end of this program, however it ends."""

    def __init__(self, connection: Connection, machine_id: str, socket: WebSocket | None = None) -> None:
        self._connection = connection
        self._path = path_of("machines", machine_id, "hold")
        self._released = threading.Event()
        self._socket: WebSocket = socket or connection.websocket(self._path)
        threading.Thread(target=self._stay, name=f"hold {machine_id}", daemon=True).start()

    def _stay(self) -> None:
        while not self._released.is_set():
            with contextlib.suppress(BoughError):
                self._socket.receive()
            if not self._released.wait(0.2) and not self._hold_again():
                return

    def _hold_again(self) -> bool:
        """The service was restarted, or ended: it keeps the machine for a while."""
        try:
            self._socket = self._connection.websocket(self._path)
        except NotFound:
            return False
        except (ServiceUnavailable, OSError):
            return not self._released.wait(0.3)
        except BoughError:
            return False
        if self._released.is_set():
            self._socket.close()
        return True

    def release(self) -> None:
        self._released.set()
        self._socket.close()
