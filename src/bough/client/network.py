"""The Python API's network: a private Ethernet segment between machines."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from bough.client.link_faults import LinkFaults
from bough.contract.networks import (
    AttachMachine,
    CaptureNetwork,
    DeleteNetwork,
    DetachMachine,
    GetNetwork,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from bough.client.connection import Connection
    from bough.client.machine import Machine
    from bough.client.websocket import WebSocket
    from bough.contract.answers import NetworkInfo


class Network(LinkFaults):
    """A network of one home. Made by a Hypervisor. Usable from several threads at once."""

    def __init__(self, api: Connection, network_id: str, *, name: str) -> None:
        super().__init__(api, network_id)
        self.id = network_id
        self.name = name

    def __repr__(self) -> str:
        return f"<bough.Network {self.name}>"

    def info(self) -> NetworkInfo:
        """Return the network's settings, and the addresses, names and counters of its machines."""
        from bough.contract.answers import NetworkInfo

        return NetworkInfo.from_dict(self._api.send(GetNetwork(reference=self.id)))

    def delete(self) -> None:
        """Delete the network. Raises InUse while a machine has a card on it."""
        self._api.send(DeleteNetwork(reference=self.id))

    def attach(self, machine: Machine | str, *, aliases: Sequence[str] = ()) -> None:
        """Give a stopped machine a card on the network. Its guest sees the card at its next boot.

        Raises:
            WrongState: the machine is not stopped.
            Conflict: the machine is on the network already.
        """
        reference = machine if isinstance(machine, str) else machine.id
        self._api.send(AttachMachine(reference=self.id, machine=reference, aliases=list(aliases)))

    def detach(self, machine: Machine | str) -> None:
        """Take the card on the network out of a stopped machine. Raises WrongState, Conflict."""
        reference = machine if isinstance(machine, str) else machine.id
        self._api.send(DetachMachine(reference=self.id, machine=reference))

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
        with self.open_capture(machines) as socket:
            yield _frames(socket)

    def open_capture(self, machines: Sequence[str] = ()) -> WebSocket:
        """Begin a capture as `capture` does. `receive` of the result returns the frames, with a time-out."""
        return self._api.open(CaptureNetwork(reference=self.id, machines=",".join(machines)))


def _frames(socket: WebSocket) -> Iterator[bytes]:
    while isinstance(data := socket.receive(), bytes):
        yield data
