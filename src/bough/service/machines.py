"""/v1/machines: the calls with one request and one answer."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import PlainTextResponse
from pydantic import BaseModel, ConfigDict, Field

from bough.hypervisor import Hypervisor
from bough.hypervisor.description import describe, describe_fully
from bough.machines.booted import wait_booted, wait_rebooted
from bough.machines.console import read_console
from bough.machines.machine import Machine
from bough.machines.record import PortForward
from bough.progress import Report
from bough.qemu.argv import render_argv
from bough.service.answers import long_call
from bough.spec.model import Address
from bough.storage import read_tail

MAX_WAIT_S = 7 * 86400.0
#: Default time limit for "stopped": perhaps no user has asked the machine to stop.
STOPPED_S = 120.0
MAX_LOG_BYTES = 2 * 1024 * 1024


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class CreateRequest(_Body):
    spec: dict[str, Any]
    name: str | None = None
    force: bool = False
    start: bool = False
    ephemeral: bool = False


class RunRequest(_Body):
    spec: dict[str, Any]
    name: str | None = None
    force: bool = False
    ephemeral: bool = False
    cold: bool = False
    timeout_s: float | None = Field(None, gt=0, le=MAX_WAIT_S)


class RenameRequest(_Body):
    name: str


class StartRequest(_Body):
    wait: bool = True
    until: Literal["agent", "booted"] = "agent"
    timeout_s: float | None = Field(None, gt=0, le=MAX_WAIT_S)
    cold: bool = False


class ResumeRequest(_Body):
    wait: bool = True
    timeout_s: float | None = Field(None, gt=0, le=MAX_WAIT_S)


class StopRequest(_Body):
    deadline_s: float | None = Field(None, ge=0, le=MAX_WAIT_S)
    force: bool = False


class RestartRequest(_Body):
    deadline_s: float | None = Field(None, ge=0, le=MAX_WAIT_S)
    wait: bool = True
    until: Literal["agent", "booted"] = "agent"
    timeout_s: float | None = Field(None, gt=0, le=MAX_WAIT_S)


class WaitRequest(_Body):
    until: Literal["agent", "running", "stopped", "first-boot", "booted", "rebooted"] = "agent"
    #: For "rebooted": id of the boot before; default: the last one that the agent told.
    boot_id: str | None = Field(None, max_length=64)
    timeout_s: float | None = Field(None, gt=0, le=MAX_WAIT_S)


class PortRequest(_Body):
    guest_port: int = Field(ge=1, le=65535)
    host_port: int = Field(0, ge=0, le=65535)
    host: Address = "127.0.0.1"


def routes(hypervisor: Hypervisor) -> APIRouter:
    router = APIRouter(prefix="/v1/machines", tags=["machines"])

    @router.get("")
    async def list_machines() -> list[dict[str, Any]]:
        return [describe(machine) for machine in hypervisor.machines.listed()]

    @router.post("")
    async def create_machine(body: CreateRequest, request: Request) -> Response:
        async def work(report: Report) -> Any:
            machine = await hypervisor.creation.create(
                body.spec, name=body.name, force=body.force, ephemeral=body.ephemeral, report=report
            )
            if body.start:
                await machine.start(report)
            return describe(machine)

        return await long_call(request, work)

    @router.post("/run")
    async def run_machine(body: RunRequest, request: Request) -> Response:
        """Create a machine, and wait until it answers. The machine forks a booted snapshot, unless `cold`."""

        async def work(report: Report) -> Any:
            options = body.model_dump(exclude={"spec"})
            return describe(await hypervisor.running.run(body.spec, **options, report=report))

        return await long_call(request, work)

    @router.get("/{reference}")
    async def get_machine(reference: str, look: bool = False) -> dict[str, Any]:
        """Return the description of a machine.

        With `look`, ask the agent first: "condition" says why it does not answer.
        """
        machine = hypervisor.machines.find(reference)
        if look:
            await machine.condition.look()
        return await describe_fully(machine)

    @router.patch("/{reference}")
    async def rename_machine(reference: str, body: RenameRequest) -> dict[str, Any]:
        machine = hypervisor.machines.find(reference)
        hypervisor.lifecycle.rename(machine, body.name)
        return describe(machine)

    @router.delete("/{reference}")
    async def delete_machine(reference: str, force: bool = False, wait: bool = True) -> dict[str, bool]:
        """Delete a machine.

        Without `wait`, an ephemeral machine is unlisted at once and deleted in the background.
        """
        machine = hypervisor.machines.find(reference)
        if wait:
            await hypervisor.lifetimes.delete(machine, force=force)
        else:
            hypervisor.lifetimes.discard(machine)
        return {"deleted": True}

    @router.post("/{reference}/start")
    async def start_machine(reference: str, body: StartRequest, request: Request) -> Response:
        machine = hypervisor.machines.find(reference)

        async def work(report: Report) -> Any:
            already = await hypervisor.lifecycle.start(machine, cold=body.cold, report=report)
            if body.wait:
                await _wait(machine, body.until, body.timeout_s, report)
            return {**describe(machine), "already": already}

        return await long_call(request, work)

    @router.post("/{reference}/stop")
    async def stop_machine(reference: str, body: StopRequest, request: Request) -> Response:
        """Stop a machine.

        `how` in the answer: "guest": the guest powered off; "power": bough cut the power; "already": the
        machine did not run. `was`: the condition before.
        """
        machine = hypervisor.machines.find(reference)
        found = machine.condition.found

        async def work(report: Report) -> Any:
            how = await hypervisor.lifecycle.stop(
                machine, deadline_s=body.deadline_s, force=body.force, report=report
            )
            return {**describe(machine), "how": how, "was": found.to_dict() if found else None}

        return await long_call(request, work)

    @router.post("/{reference}/restart")
    async def restart_machine(reference: str, body: RestartRequest, request: Request) -> Response:
        machine = hypervisor.machines.find(reference)

        async def work(report: Report) -> Any:
            await hypervisor.lifecycle.restart(machine, deadline_s=body.deadline_s, report=report)
            if body.wait:
                await _wait(machine, body.until, body.timeout_s, report)
            return describe(machine)

        return await long_call(request, work)

    @router.post("/{reference}/pause")
    async def pause_machine(reference: str) -> dict[str, Any]:
        machine = hypervisor.machines.find(reference)
        already = await hypervisor.lifecycle.pause(machine)
        return {**describe(machine), "already": already}

    @router.post("/{reference}/suspend")
    async def suspend_machine(reference: str, request: Request) -> Response:
        """Write the machine's memory to disk, and end its process."""
        machine = hypervisor.machines.find(reference)

        async def work(report: Report) -> Any:
            already = await hypervisor.lifecycle.suspend(machine, report=report)
            return {**describe(machine), "already": already}

        return await long_call(request, work)

    @router.post("/{reference}/resume")
    async def resume_machine(reference: str, request: Request, body: ResumeRequest | None = None) -> Response:
        """Continue a paused or suspended machine. With `wait`, wait until a suspended machine answers."""
        machine = hypervisor.machines.find(reference)
        wait, timeout_s = (True, None) if body is None else (body.wait, body.timeout_s)
        was_mute = machine.state == "suspended" or machine.condition.mute.is_set()

        async def work(report: Report) -> Any:
            already = await hypervisor.lifecycle.resume(machine, report=report)
            if was_mute and wait:
                await machine.wait_ready(timeout_s=timeout_s, report=report)
            return {**describe(machine), "already": already}

        return await long_call(request, work)

    @router.get("/{reference}/plan")
    async def get_plan(reference: str) -> dict[str, Any]:
        """Return the plan of the next start, as data and as a command line."""
        machine = hypervisor.machines.find(reference)
        plan = await hypervisor.machines.plan_of(machine.record, machine.paths)
        return {"plan": plan.to_dict(), "argv": render_argv(plan)}

    @router.get("/{reference}/logs", response_class=PlainTextResponse)
    async def get_logs(
        reference: str,
        source: Literal["console", "qemu"] = "console",
        tail: int = Query(64 * 1024, ge=1, le=MAX_LOG_BYTES),
    ) -> str:
        """Return the last `tail` bytes as the guest printed them, with escape sequences."""
        paths = hypervisor.machines.find(reference).paths
        return (
            read_console(paths.console_log, tail) if source == "console" else read_tail(paths.qemu_log, tail)
        )

    @router.post("/{reference}/wait")
    async def wait_machine(reference: str, body: WaitRequest, request: Request) -> Response:
        machine = hypervisor.machines.find(reference)

        async def work(report: Report) -> Any:
            if body.until == "stopped":
                await machine.readiness.wait_stopped(timeout_s=body.timeout_s or STOPPED_S)
            elif body.until == "rebooted":
                await wait_rebooted(machine, timeout_s=body.timeout_s, after_boot=body.boot_id, report=report)
            else:
                await _wait(machine, body.until, body.timeout_s, report)
            return describe(machine)

        return await long_call(request, work)

    @router.post("/{reference}/ping")
    async def ping_machine(reference: str) -> dict[str, float]:
        return {"rtt_s": await (await hypervisor.machines.find(reference).agent()).ping()}

    @router.get("/{reference}/load")
    async def get_load(reference: str) -> dict[str, Any]:
        """Return memory and load as the guest measures them."""
        return await (await hypervisor.machines.find(reference).agent()).call(
            "load", {}, timeout_s=10, exact=True
        )

    @router.get("/{reference}/ports")
    async def list_ports(reference: str) -> list[dict[str, Any]]:
        return [forward.model_dump() for forward in hypervisor.machines.find(reference).record.ports]

    @router.post("/{reference}/ports")
    async def add_port(reference: str, body: PortRequest) -> dict[str, Any]:
        """Listen on a port of the host (0: any free one) for a port of the guest."""
        forward = PortForward(host=body.host, host_port=body.host_port, guest_port=body.guest_port)
        return (await hypervisor.machines.find(reference).forwards.add(forward)).model_dump()

    @router.delete("/{reference}/ports/{host_port}")
    async def remove_port(reference: str, host_port: int) -> dict[str, bool]:
        await hypervisor.machines.find(reference).forwards.remove(host_port)
        return {"removed": True}

    return router


async def _wait(machine: Machine, until: str, timeout_s: float | None, report: Report) -> None:
    if until == "booted":
        await wait_booted(machine, timeout_s=timeout_s, report=report)
    else:
        await machine.wait_ready(timeout_s=timeout_s, report=report)
