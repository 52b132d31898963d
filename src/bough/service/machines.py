"""/v1/machines: the calls about a machine as a whole."""

from __future__ import annotations

from typing import Any

from bough.contract import machines as contract
from bough.hypervisor import Hypervisor
from bough.hypervisor.description import describe, describe_fully
from bough.machines.booted import wait_booted, wait_rebooted
from bough.machines.console import read_console
from bough.machines.machine import Machine
from bough.progress import Report
from bough.qemu.argv import render_argv
from bough.service.routes import Routes
from bough.storage import read_tail

#: Default time limit for "stopped": perhaps no user has asked the machine to stop.
STOPPED_S = 120.0
Description = dict[str, Any]


def add_routes(routes: Routes) -> None:
    routes.quick(contract.ListMachines, list_machines)
    routes.long(contract.CreateMachine, create_machine)
    routes.long(contract.RunMachine, run_machine)
    routes.quick(contract.GetMachine, get_machine)
    routes.quick(contract.RenameMachine, rename_machine)
    routes.long(contract.SetMachine, set_machine)
    routes.quick(contract.KeepMachine, keep_machine)
    routes.quick(contract.DeleteMachine, delete_machine)
    routes.long(contract.StartMachine, start_machine)
    routes.long(contract.StopMachine, stop_machine)
    routes.long(contract.RestartMachine, restart_machine)
    routes.quick(contract.PauseMachine, pause_machine)
    routes.long(contract.SuspendMachine, suspend_machine)
    routes.long(contract.ResumeMachine, resume_machine)
    routes.quick(contract.GetPlan, get_plan)
    routes.content(contract.GetLogs, get_logs, "text/plain")
    routes.long(contract.WaitMachine, wait_machine)
    routes.quick(contract.PingMachine, ping_machine)
    routes.quick(contract.GetLoad, get_load)


async def list_machines(hypervisor: Hypervisor, _: contract.ListMachines) -> list[Description]:
    return [describe(machine) for machine in hypervisor.machines.listed()]


async def create_machine(
    hypervisor: Hypervisor, asked: contract.CreateMachine, report: Report
) -> Description:
    machine = await hypervisor.creation.create(
        asked.spec, name=asked.name, force=asked.force, ephemeral=asked.ephemeral, report=report
    )
    if asked.start:
        await machine.start(report)
    return describe(machine)


async def run_machine(hypervisor: Hypervisor, asked: contract.RunMachine, report: Report) -> Description:
    machine = await hypervisor.running.run(
        asked.spec,
        name=asked.name,
        force=asked.force,
        ephemeral=asked.ephemeral,
        cold=asked.cold,
        program=asked.program,
        timeout_s=asked.timeout_s,
        report=report,
    )
    return describe(machine)


async def get_machine(hypervisor: Hypervisor, asked: contract.GetMachine) -> Description:
    machine = hypervisor.machines.find(asked.reference)
    if asked.look:
        await machine.condition.look()
    return await describe_fully(machine)


async def rename_machine(hypervisor: Hypervisor, asked: contract.RenameMachine) -> Description:
    machine = hypervisor.machines.find(asked.reference)
    hypervisor.lifecycle.rename(machine, asked.name)
    return describe(machine)


async def set_machine(hypervisor: Hypervisor, asked: contract.SetMachine, report: Report) -> Description:
    machine = hypervisor.machines.find(asked.reference)
    await hypervisor.machine_settings.change(machine, asked.settings, force=asked.force, report=report)
    return describe(machine)


async def keep_machine(hypervisor: Hypervisor, asked: contract.KeepMachine) -> Description:
    machine = hypervisor.machines.find(asked.reference)
    await hypervisor.lifetimes.keep(machine)
    return describe(machine)


async def delete_machine(hypervisor: Hypervisor, asked: contract.DeleteMachine) -> dict[str, bool]:
    machine = hypervisor.machines.find(asked.reference)
    hypervisor.projects.check_deletable(machine)
    if asked.wait:
        await hypervisor.lifetimes.delete(machine, force=asked.force)
    else:
        hypervisor.lifetimes.discard(machine)
    return {"deleted": True}


async def start_machine(hypervisor: Hypervisor, asked: contract.StartMachine, report: Report) -> Description:
    machine = hypervisor.machines.find(asked.reference)
    already = await hypervisor.lifecycle.start(machine, cold=asked.cold, report=report)
    if asked.wait:
        await _wait(machine, asked.until, asked.timeout_s, report)
    return {**describe(machine), "already": already}


async def stop_machine(hypervisor: Hypervisor, asked: contract.StopMachine, report: Report) -> Description:
    machine = hypervisor.machines.find(asked.reference)
    found = machine.condition.found
    how = await hypervisor.lifecycle.stop(
        machine, deadline_s=asked.deadline_s, force=asked.force, report=report
    )
    return {**describe(machine), "how": how, "was": found.to_dict() if found else None}


async def restart_machine(
    hypervisor: Hypervisor, asked: contract.RestartMachine, report: Report
) -> Description:
    machine = hypervisor.machines.find(asked.reference)
    await hypervisor.lifecycle.restart(machine, deadline_s=asked.deadline_s, report=report)
    if asked.wait:
        await _wait(machine, asked.until, asked.timeout_s, report)
    return describe(machine)


async def pause_machine(hypervisor: Hypervisor, asked: contract.PauseMachine) -> Description:
    machine = hypervisor.machines.find(asked.reference)
    already = await hypervisor.lifecycle.pause(machine)
    return {**describe(machine), "already": already}


async def suspend_machine(
    hypervisor: Hypervisor, asked: contract.SuspendMachine, report: Report
) -> Description:
    machine = hypervisor.machines.find(asked.reference)
    already = await hypervisor.lifecycle.suspend(machine, report=report)
    return {**describe(machine), "already": already}


async def resume_machine(
    hypervisor: Hypervisor, asked: contract.ResumeMachine, report: Report
) -> Description:
    machine = hypervisor.machines.find(asked.reference)
    was_mute = machine.state == "suspended" or machine.condition.mute.is_set()
    already = await hypervisor.lifecycle.resume(machine, report=report)
    if was_mute and asked.wait:
        await machine.wait_ready(timeout_s=asked.timeout_s, report=report)
    return {**describe(machine), "already": already}


async def get_plan(hypervisor: Hypervisor, asked: contract.GetPlan) -> dict[str, Any]:
    machine = hypervisor.machines.find(asked.reference)
    plan = await hypervisor.machines.plan_of(machine.record, machine.paths)
    if machine.record.suspended is None:
        plan = plan.for_boot()
    return {"plan": plan.to_dict(), "argv": render_argv(plan)}


async def get_logs(hypervisor: Hypervisor, asked: contract.GetLogs) -> str:
    paths = hypervisor.machines.find(asked.reference).paths
    if asked.source == "console":
        return read_console(paths.console_log, asked.tail)
    return read_tail(paths.qemu_log, asked.tail)


async def wait_machine(hypervisor: Hypervisor, asked: contract.WaitMachine, report: Report) -> Description:
    machine, timeout_s = hypervisor.machines.find(asked.reference), asked.timeout_s
    if asked.until == "stopped":
        await machine.readiness.wait_stopped(timeout_s=timeout_s or STOPPED_S)
    elif asked.until == "rebooted":
        await wait_rebooted(machine, timeout_s=timeout_s, after_boot=asked.boot_id, report=report)
    else:
        await _wait(machine, asked.until, timeout_s, report)
    return describe(machine)


async def _wait(machine: Machine, until: str, timeout_s: float | None, report: Report) -> None:
    if until == "booted":
        await wait_booted(machine, timeout_s=timeout_s, report=report)
    else:
        await machine.wait_ready(timeout_s=timeout_s, report=report)


async def ping_machine(hypervisor: Hypervisor, asked: contract.PingMachine) -> dict[str, float]:
    return {"rtt_s": await (await hypervisor.machines.find(asked.reference).agent()).ping()}


async def get_load(hypervisor: Hypervisor, asked: contract.GetLoad) -> dict[str, Any]:
    channel = await hypervisor.machines.find(asked.reference).agent()
    return await channel.call("load", {}, timeout_s=10, exact=True)
