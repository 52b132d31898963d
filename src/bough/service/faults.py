"""/v1/faults: what is broken on purpose, in links and machines."""

from __future__ import annotations

from typing import Any

from fastapi import WebSocket

from bough.contract import faults as contract
from bough.errors import InvalidInput
from bough.hypervisor import Hypervisor
from bough.hypervisor.description import describe
from bough.progress import Report
from bough.service.routes import Routes
from bough.service.websocket import answering, for_each_message, ignore

_LINK_WORDS = ("delay", "jitter", "loss", "correlation", "duplicate", "corrupt", "reorder", "rate")


def add_routes(routes: Routes) -> None:
    routes.quick(contract.ListFaults, list_faults)
    routes.quick(contract.AddLinkFault, add_link_fault)
    routes.quick(contract.AddPartition, add_partition)
    routes.quick(contract.PullCable, pull_cable)
    routes.quick(contract.AddPause, add_pause)
    routes.quick(contract.FailDisk, fail_disk)
    routes.quick(contract.ThrottleDisk, throttle_disk)
    routes.long(contract.SetClockWrong, set_clock_wrong)
    routes.long(contract.AddPressure, add_pressure)
    routes.long(contract.ArmPowerCut, arm_power_cut)
    routes.long(contract.StrikeMachine, strike_machine)
    routes.long(contract.KillInGuest, kill_in_guest)
    routes.long(contract.HealFaults, heal_faults)
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


async def pull_cable(hypervisor: Hypervisor, asked: contract.PullCable) -> dict[str, Any]:
    fault = await hypervisor.machine_faults.unplug(
        hypervisor.machines.find(asked.machine), asked.network, held=asked.held, for_s=asked.for_s
    )
    return hypervisor.faults.describe(fault)


async def add_pause(hypervisor: Hypervisor, asked: contract.AddPause) -> dict[str, Any]:
    machine = hypervisor.machines.find(asked.machine)
    fault = await hypervisor.machine_faults.pause(machine, held=asked.held, for_s=asked.for_s)
    return hypervisor.faults.describe(fault)


async def fail_disk(hypervisor: Hypervisor, asked: contract.FailDisk) -> dict[str, Any]:
    if (asked.start is None) != (asked.end is None):
        raise InvalidInput("an area has a start and an end")
    fault = await hypervisor.machine_faults.fail_disk(
        hypervisor.machines.find(asked.machine),
        asked.disk,
        asked.operation,
        error=asked.error,
        once=asked.once,
        rate=asked.rate,
        area=None if asked.start is None or asked.end is None else (asked.start, asked.end),
        seed=asked.seed,
        held=asked.held,
        for_s=asked.for_s,
    )
    return hypervisor.faults.describe(fault)


async def throttle_disk(hypervisor: Hypervisor, asked: contract.ThrottleDisk) -> dict[str, Any]:
    fault = await hypervisor.machine_faults.throttle_disk(
        hypervisor.machines.find(asked.machine),
        asked.disk,
        bytes_per_s=asked.bytes_per_s,
        iops=asked.iops,
        held=asked.held,
        for_s=asked.for_s,
    )
    return hypervisor.faults.describe(fault)


async def set_clock_wrong(hypervisor: Hypervisor, asked: contract.SetClockWrong, _: Report) -> dict[str, Any]:
    fault = await hypervisor.machine_faults.set_clock(
        hypervisor.machines.find(asked.machine),
        jump_s=asked.jump_s,
        to=asked.to,
        drift_ppm=asked.drift_ppm,
        held=asked.held,
        for_s=asked.for_s,
    )
    return hypervisor.faults.describe(fault)


async def add_pressure(hypervisor: Hypervisor, asked: contract.AddPressure, _: Report) -> dict[str, Any]:
    fault = await hypervisor.machine_faults.press(
        hypervisor.machines.find(asked.machine),
        loops=asked.loops,
        memory_bytes=asked.memory_bytes,
        full=asked.full,
        held=asked.held,
        for_s=asked.for_s,
    )
    return hypervisor.faults.describe(fault)


async def arm_power_cut(hypervisor: Hypervisor, asked: contract.ArmPowerCut, _: Report) -> dict[str, Any]:
    machine = hypervisor.machines.find(asked.machine)
    fault = await hypervisor.power_loss.arm(machine, held=asked.held, for_s=asked.for_s)
    return hypervisor.faults.describe(fault)


async def strike_machine(hypervisor: Hypervisor, asked: contract.StrikeMachine, _: Report) -> dict[str, Any]:
    machine = hypervisor.machines.find(asked.machine)
    if not asked.lose_unsynced:
        await hypervisor.machine_faults.strike(machine, asked.how)
    elif asked.how == "power-cut":
        await hypervisor.power_loss.cut(machine, seed=asked.seed)
    else:
        raise InvalidInput(f"only a power cut loses unsynced writes, not a {asked.how}")
    return describe(machine)


async def kill_in_guest(hypervisor: Hypervisor, asked: contract.KillInGuest, _: Report) -> dict[str, bool]:
    machine = hypervisor.machines.find(asked.machine)
    await hypervisor.machine_faults.kill(machine, unit=asked.unit, process=asked.process, signal=asked.signal)
    return {"killed": True}


async def heal_faults(hypervisor: Hypervisor, asked: contract.HealFaults, _: Report) -> list[dict[str, Any]]:
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
