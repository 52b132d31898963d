"""Keep an ephemeral machine alive: the service deletes the machine when no client holds it."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING

from bough.contract.host import HoldMachine
from bough.errors import BoughError, NotFound, ServiceUnavailable

if TYPE_CHECKING:
    from bough.client.connection import Connection
    from bough.client.websocket import WebSocket


class Hold:
    """Hold a machine until `release`, or until this program ends in any way.

    The hold begins shortly after construction. Until then, the service keeps the machine for at most 30 s.
    """

    def __init__(self, connection: Connection, machine_id: str, socket: WebSocket | None = None) -> None:
        self._connection = connection
        self._request = HoldMachine(reference=machine_id)
        self._released = threading.Event()
        self._socket = socket
        threading.Thread(target=self._stay, name=f"hold {machine_id}", daemon=True).start()

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
        """Connect. Return False if the machine does not exist any more."""
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
