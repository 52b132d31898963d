"""/v1/machines/NAME/ports: forwarded ports."""

from __future__ import annotations

from typing import Any

from bough.contract import ports as contract
from bough.hypervisor import Hypervisor
from bough.machines.record import PortForward
from bough.service.routes import Routes


def add_routes(routes: Routes) -> None:
    routes.quick(contract.ListPorts, list_ports)
    routes.quick(contract.AddPort, add_port)
    routes.quick(contract.RemovePort, remove_port)


async def list_ports(hypervisor: Hypervisor, asked: contract.ListPorts) -> list[dict[str, Any]]:
    return [forward.model_dump() for forward in hypervisor.machines.find(asked.reference).record.ports]


async def add_port(hypervisor: Hypervisor, asked: contract.AddPort) -> dict[str, Any]:
    forward = PortForward(host=asked.host, host_port=asked.host_port, guest_port=asked.guest_port)
    return (await hypervisor.machines.find(asked.reference).forwards.add(forward)).model_dump()


async def remove_port(hypervisor: Hypervisor, asked: contract.RemovePort) -> dict[str, bool]:
    await hypervisor.machines.find(asked.reference).forwards.remove(asked.host_port)
    return {"removed": True}
