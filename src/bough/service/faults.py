"""/v1/faults: what is broken on purpose, in links and machines."""

from __future__ import annotations

from typing import Any

from fastapi import WebSocket

from bough.contract import faults as contract
from bough.hypervisor import Hypervisor
from bough.service.routes import Routes
from bough.service.websocket import answering, for_each_message, ignore

_LINK_WORDS = ("delay", "jitter", "loss", "correlation", "duplicate", "corrupt", "reorder", "rate")


def add_routes(routes: Routes) -> None:
    routes.quick(contract.ListFaults, list_faults)
    routes.quick(contract.AddLinkFault, add_link_fault)
    routes.quick(contract.AddPartition, add_partition)
    routes.quick(contract.HealFaults, heal_faults)
    routes.stream(contract.HoldFault, hold_fault)


async def list_faults(hypervisor: Hypervisor, _: contract.ListFaults) -> list[dict[str, Any]]:
    return [hypervisor.faults.describe(fault) for fault in hypervisor.faults]


async def add_link_fault(hypervisor: Hypervisor, asked: contract.AddLinkFault) -> dict[str, Any]:
    fault = await hypervisor.link_faults.link(
        asked.machine,
        asked.peers,
        {word: getattr(asked, word) for word in _LINK_WORDS},
        network=asked.network,
        direction=asked.direction,
        seed=asked.seed,
        held=asked.held,
        for_s=asked.for_s,
    )
    return hypervisor.faults.describe(fault)


async def add_partition(hypervisor: Hypervisor, asked: contract.AddPartition) -> dict[str, Any]:
    fault = await hypervisor.link_faults.partition(
        asked.pattern,
        asked.groups,
        asked.machines,
        network=asked.network,
        mode=asked.mode,
        seed=asked.seed,
        held=asked.held,
        for_s=asked.for_s,
    )
    return hypervisor.faults.describe(fault)


async def heal_faults(hypervisor: Hypervisor, asked: contract.HealFaults) -> list[dict[str, Any]]:
    faults = hypervisor.faults
    found = [faults.find(one) for one in asked.faults]
    if asked.network is not None:
        found += faults.of_network(hypervisor.networks.find(asked.network).id)
    if asked.machine is not None:
        found += faults.of_machine(hypervisor.machines.find(asked.machine))
    if not asked.faults and asked.network is None and asked.machine is None:
        found = list(faults)
    told = {fault.id: faults.describe(fault) for fault in found}
    await faults.heal_all({fault.id: fault for fault in found}.values())
    return list(told.values())


async def hold_fault(hypervisor: Hypervisor, asked: contract.HoldFault, socket: WebSocket) -> None:
    async with answering(socket):
        fault = hypervisor.faults.find(asked.fault)
        await socket.accept()
        with hypervisor.faults.hold(fault):
            await for_each_message(socket, ignore)
