"""/v1/networks: networks between machines, and captures of frames."""

from __future__ import annotations

from typing import Any

from fastapi import WebSocket

from bough.contract import networks as contract
from bough.hypervisor import Hypervisor
from bough.service.routes import Routes
from bough.service.websocket import answering, for_each_message, ignore, until_first


def add_routes(routes: Routes) -> None:
    routes.quick(contract.ListNetworks, list_networks)
    routes.quick(contract.CreateNetwork, create_network)
    routes.quick(contract.GetNetwork, get_network)
    routes.quick(contract.DeleteNetwork, delete_network)
    routes.quick(contract.AttachMachine, attach_machine)
    routes.quick(contract.DetachMachine, detach_machine)
    routes.stream(contract.CaptureNetwork, capture_network)


async def list_networks(hypervisor: Hypervisor, _: contract.ListNetworks) -> list[dict[str, Any]]:
    networks = hypervisor.networks
    return [await networks.describe(record) for record in networks.store]


async def create_network(hypervisor: Hypervisor, asked: contract.CreateNetwork) -> dict[str, Any]:
    networks = hypervisor.networks
    made = networks.create(asked.name, subnet=asked.subnet, mtu=asked.mtu, internal=asked.internal)
    return await networks.describe(made)


async def get_network(hypervisor: Hypervisor, asked: contract.GetNetwork) -> dict[str, Any]:
    networks = hypervisor.networks
    return await networks.describe(networks.find(asked.reference))


async def delete_network(hypervisor: Hypervisor, asked: contract.DeleteNetwork) -> dict[str, bool]:
    await hypervisor.networks.delete(asked.reference)
    return {"deleted": True}


async def attach_machine(hypervisor: Hypervisor, asked: contract.AttachMachine) -> dict[str, Any]:
    machine = hypervisor.machines.find(asked.machine)
    await hypervisor.network_changes.attach(machine, asked.reference, aliases=asked.aliases)
    return await hypervisor.networks.describe(hypervisor.networks.find(asked.reference))


async def detach_machine(hypervisor: Hypervisor, asked: contract.DetachMachine) -> dict[str, Any]:
    machine = hypervisor.machines.find(asked.machine)
    await hypervisor.network_changes.detach(machine, asked.reference)
    return await hypervisor.networks.describe(hypervisor.networks.find(asked.reference))


async def capture_network(hypervisor: Hypervisor, asked: contract.CaptureNetwork, socket: WebSocket) -> None:
    async with answering(socket):
        networks = hypervisor.networks
        wanted = [name for name in asked.machines.split(",") if name]
        frames = await networks.capture(networks.find(asked.reference), wanted)
        await socket.accept()

        async def outward() -> None:
            async for data in frames:
                await socket.send_bytes(data)

        await until_first(outward(), for_each_message(socket, ignore))
