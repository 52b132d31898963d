"""Requests about ports of a guest: forwarded ports and tunnels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from bough.contract.request import Request, Route, stream

if TYPE_CHECKING:
    from bough.contract.answers import Port
    from bough.contract.checks import GUEST_PORT, HOST_PORT, HostAddress


class ListPorts(Request):
    """List the forwarded ports of a machine."""

    route = Route("GET", "/machines/{reference}/ports")
    answer: ClassVar[list[Port]]
    reference: str


class AddPort(Request):
    """Listen on a port of the host (0: any free one) for a port of the guest."""

    route = Route("POST", "/machines/{reference}/ports")
    answer: ClassVar[Port]
    reference: str
    guest_port: Annotated[int, GUEST_PORT]
    host_port: Annotated[int, HOST_PORT] = 0
    host: Annotated[str, HostAddress()] = "127.0.0.1"


class RemovePort(Request):
    """Stop forwarding a port."""

    route = Route("DELETE", "/machines/{reference}/ports/{host_port}")
    reference: str
    host_port: int


class OpenTunnel(Request):
    """Open a TCP connection to a port of the guest. An empty message is the end of one direction."""

    route = stream("/machines/{reference}/tunnel")
    reference: str
    port: int
