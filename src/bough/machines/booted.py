"""Wait until a guest has started all services. The agent answers long before."""

from __future__ import annotations

import asyncio
import time

from bough.errors import AgentUnavailable, BoughError, DeadlineExceeded, GuestRefused
from bough.machines.boot import BOOTED, LOOK_AGAIN_S, UNKNOWN
from bough.machines.first_boot import run_script
from bough.machines.machine import Machine
from bough.machines.state import State
from bough.progress import Progress, Report, ignore_progress, notice


async def wait_booted(
    machine: Machine,
    *,
    timeout_s: float | None = None,
    after_boot: str | None = None,
    report: Report = ignore_progress,
) -> None:
    """Wait until the guest's init has started all services and the network.

    If the init does not tell, the wait ends when the agent answers, and the report says so. A guest that
    shuts down is not up: the wait goes on until the next boot has ended.

    Args:
        timeout_s: a user's bound, from this call; None: as long as the guest makes progress.
        after_boot: id of a boot that does not count.

    Raises:
        AgentTimeout, MachineFailed: as wait_ready() of the machine.
        GuestRefused: the first boot failed, or the guest is in maintenance mode.
        AgentUnavailable: the guest has no agent.
        DeadlineExceeded: the guest answers but is not up.
    """
    watch = machine.watch(bound_s=timeout_s)
    answered, told, since = False, "", time.monotonic()
    while watch.look():
        await machine.wait_ready(timeout_s=watch.left_s, report=report)
        report(Progress("waiting until the guest is up"))
        try:
            channel = await machine.agent()
            answered = True
            told = await machine.boot.ask(channel, watch, since=since)
        except AgentUnavailable:
            if not answered and not machine.record.image_agent:
                raise
            told = ""
        except DeadlineExceeded:
            break
        if _is_up(machine, told, after_boot):
            if not machine.boot.note(told):
                report(notice("the guest's init does not tell when all services are up: the agent answers"))
            return
        await asyncio.sleep(LOOK_AGAIN_S)
    raise _not_up(machine, watch.waited_s, told, after_boot)


async def wait_rebooted(
    machine: Machine,
    *,
    timeout_s: float | None = None,
    after_boot: str | None = None,
    report: Report = ignore_progress,
) -> None:
    """Wait until the guest has rebooted and is up.

    Args:
        after_boot: id of the boot before; default: the id from the agent's last hello.

    Raises: as `wait_booted`.
    """
    before = after_boot or machine.boot_id
    if before is None and not machine.record.image_agent:
        before = (await run_script(await machine.agent(), "cat /proc/sys/kernel/random/boot_id")).strip()
    await wait_booted(machine, timeout_s=timeout_s, after_boot=before, report=report)


def _is_up(machine: Machine, told: str, after_boot: str | None) -> bool:
    last = told.strip().rpartition("\n")[2]
    if last == "maintenance":
        name = machine.name
        seen = f"bough exec {name} -- systemctl --failed" if _has_systemd(machine) else f"bough logs {name}"
        raise GuestRefused(
            f"machine '{machine.name}' is in maintenance mode: its boot failed",
            hint=f"to see what failed: {seen}",
            machine=machine.name,
        )
    match = BOOTED.fullmatch(last) or UNKNOWN.fullmatch(last)
    return match is not None and match[1] != after_boot


def _not_up(machine: Machine, waited_s: float, told: str, after_boot: str | None) -> DeadlineExceeded:
    name = machine.name
    jobs = f"bough exec {name} -- systemctl list-jobs" if _has_systemd(machine) else f"bough logs {name}"
    if told.strip() == "stopping":
        what, hint = "is still shutting down", f"to see why: {jobs}"
    elif BOOTED.search(told) and after_boot is not None:
        what, hint = "has not rebooted", f"to reboot it: bough exec {name} -- reboot"
    else:
        what, hint = "answers but is still starting", f"to see why: {jobs}"
    return DeadlineExceeded(f"machine '{name}' {what} after {waited_s:.0f} s", hint=hint, machine=name)


def _has_systemd(machine: Machine) -> bool:
    channel = machine.channel()
    facts = channel.facts if channel is not None else None
    return facts is None or facts.init in ("", "systemd")


async def wait_boot_end(machine: Machine, report: Report) -> None:
    """Wait until a running machine with bough's agent has booted, so that forks need not continue the boot.
    Problems are reported, not raised.
    """
    if machine.state is not State.RUNNING or not machine.record.image_agent or machine.booted:
        return
    if machine.channel() is None:
        report(
            notice(
                "the agent does not answer: maybe the guest is still booting, and its forks continue the boot"
            )
        )
        return
    try:
        await wait_booted(machine, report=report)
    except BoughError as error:
        report(notice(f"its forks continue the boot: {error.message}"))
