"""The Python API's network: a private Ethernet segment between machines."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from bough.client.connection import Connection, path_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from bough.client.info import NetworkInfo


class Network:
    """A network of one home. Made by a Hypervisor. Usable from several threads at once."""

    def __init__(self, api: Connection, network_id: str, *, name: str) -> None:
        self._api = api
        self.id = network_id
        self.name = name

    def __repr__(self) -> str:
        return f"<bough.Network {self.name}>"

    def info(self) -> NetworkInfo:
        """Return the network's settings, and the addresses, names and counters of its machines."""
        from bough.client.info import NetworkInfo

        return NetworkInfo.from_dict(self._api.get(path_of("networks", self.id)))

    def delete(self) -> None:
        """Delete the network. Raises InUse while a machine has a card on it."""
        self._api.call("DELETE", path_of("networks", self.id))

    @contextlib.contextmanager
    def capture(self, machines: Sequence[str] = ()) -> Iterator[Iterator[bytes]]:
        """Capture all frames of the network, in the form of pcapng, until the block ends.

            with network.capture() as frames, open("back.pcapng", "wb") as file:
                for data in frames:
                    file.write(data)

        Args:
            machines: only the frames that these machines send; none: all frames.

        Raises:
            Conflict: no machine on the network runs.
        """
        path = path_of("networks", self.id, "capture", machines=",".join(machines) or None)
        with self._api.websocket(path) as socket:
            yield _frames(socket.receive)


def _frames(receive: Callable[[], bytes | str | None]) -> Iterator[bytes]:
    while isinstance(data := receive(), bytes):
        yield data
