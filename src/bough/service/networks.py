"""/v1/networks: networks between machines, and their captures."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, WebSocket
from pydantic import BaseModel, ConfigDict

from bough.hypervisor import Hypervisor
from bough.service.websocket import answering, for_each_message, ignore, until_first


class NetworkRequest(BaseModel):
    """A network to create.

    Attributes:
        subnet: an IPv4 network like "10.1.0.0/24"; without one, bough chooses.
        mtu: bytes of a frame's payload; default: 1500.
    """

    model_config = ConfigDict(extra="forbid")
    name: str
    subnet: str | None = None
    mtu: int | None = None


def routes(hypervisor: Hypervisor) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["networks"])
    networks = hypervisor.networks

    @router.get("/networks")
    async def list_networks() -> list[dict[str, Any]]:
        return [await networks.describe(record) for record in networks.store]

    @router.post("/networks")
    async def create_network(body: NetworkRequest) -> dict[str, Any]:
        """Create a network: a private Ethernet segment, with addresses and names for its machines."""
        return await networks.describe(networks.create(body.name, subnet=body.subnet, mtu=body.mtu))

    @router.get("/networks/{reference}")
    async def get_network(reference: str) -> dict[str, Any]:
        return await networks.describe(networks.store.find(reference))

    @router.delete("/networks/{reference}")
    async def delete_network(reference: str) -> dict[str, bool]:
        """Delete a network. Refused while a machine has a card on it."""
        await networks.delete(reference)
        return {"deleted": True}

    @router.websocket("/networks/{reference}/capture")
    async def capture(socket: WebSocket, reference: str, machines: str = "") -> None:
        """Send the frames of a network as pcapng, until the client closes.

        `machines` names the senders, separated by commas; without it, all frames are sent.
        """
        async with answering(socket):
            wanted = [name for name in machines.split(",") if name]
            frames = await networks.capture(networks.store.find(reference), wanted)
            await socket.accept()

            async def outward() -> None:
                async for data in frames:
                    await socket.send_bytes(data)

            await until_first(outward(), for_each_message(socket, ignore))

    return router
