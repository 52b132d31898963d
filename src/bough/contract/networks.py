"""Requests about networks between machines, and about captures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from bough.contract.request import Request, Route, stream

if TYPE_CHECKING:
    from bough.contract.answers import NetworkInfo


class ListNetworks(Request):
    """List all networks, the oldest first."""

    route = Route("GET", "/networks")
    answer: ClassVar[list[NetworkInfo]]


class CreateNetwork(Request):
    """Create a network: a private Ethernet segment, with addresses and names for its machines.

    `subnet`: an IPv4 network like "10.1.0.0/24"; by default bough chooses. `mtu`: bytes of a frame's payload;
    default: 1500. `internal`: no frame leaves the network; false: machines without a card on the uplink reach
    the outside through this network.
    """

    route = Route("POST", "/networks")
    answer: ClassVar[NetworkInfo]
    name: str
    subnet: str | None = None
    mtu: int | None = None
    internal: bool = True


class GetNetwork(Request):
    """Return a network: addresses, names and traffic of its machines."""

    route = Route("GET", "/networks/{reference}")
    answer: ClassVar[NetworkInfo]
    reference: str


class DeleteNetwork(Request):
    """Delete a network. Refused while a machine has a card on the network."""

    route = Route("DELETE", "/networks/{reference}")
    reference: str


class AttachMachine(Request):
    """Give a stopped machine a card on a network. The guest sees the card at its next boot.

    `aliases`: further names of the machine on the network.
    """

    route = Route("POST", "/networks/{reference}/machines")
    answer: ClassVar[NetworkInfo]
    reference: str
    machine: str
    aliases: Sequence[str] = ()


class DetachMachine(Request):
    """Take the card on a network out of a stopped machine."""

    route = Route("DELETE", "/networks/{reference}/machines/{machine}")
    answer: ClassVar[NetworkInfo]
    reference: str
    machine: str


class CaptureNetwork(Request):
    """Send the frames of a network as pcapng, until the client closes.

    `machines` names the senders, separated by commas; without it, all frames are sent.
    """

    route = stream("/networks/{reference}/capture")
    reference: str
    machines: str = ""
