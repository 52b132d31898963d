"""Wait until a guest has started all that it starts: its agent answers long before that."""

from __future__ import annotations

import asyncio

from bough.errors import AgentUnavailable, BoughError, DeadlineExceeded, GuestRefused
from bough.machines.boot import BOOTED, LOOK_AGAIN_S
from bough.machines.first_boot import run_script
from bough.machines.machine import Machine
from bough.machines.record import State
from bough.progress import Progress, Report, ignore_progress, notice


async def wait_booted(
    machine: Machine,
    *,
    timeout_s: float | None = None,
    after_boot: str | None = None,
    report: Report = ignore_progress,
) -> None:
    """Wait until the guest's init has started everything, its network too.

    A guest that shuts down is not up: its next boot is waited for.

    Args:
        timeout_s: a bound that a user gave, from this call; None: as long as the guest makes progress.
        after_boot: the id of a boot that does not count.

    Raises:
        AgentTimeout, MachineFailed: as wait_ready() of the machine.
        GuestRefused: its first boot failed, or it is in maintenance mode.
        AgentUnavailable: it has no agent.
        DeadlineExceeded: it answers, and is not up.
    """
    watch = machine.watch(bound_s=timeout_s)
    answered, told = False, ""
    while watch.look():
        await machine.wait_ready(timeout_s=watch.left_s, report=report)
        report(Progress("waiting until it is up"))
        try:
            channel = await machine.agent()
            answered = True
            told = await machine.boot.ask(channel, watch)
        except AgentUnavailable:
            if not answered and not machine.record.image_agent:
                raise
            told = ""
        except DeadlineExceeded:
            break
        if _is_up(machine, told, after_boot):
            machine.boot.note(told)
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
    """Wait until the guest has booted anew, and is up.

    Args:
        after_boot: the id of the boot before; default: the one that the guest's agent told last.

    Raises: as `wait_booted`.
    """
    before = after_boot or machine.boot_id
    if before is None and not machine.record.image_agent:
        before = (await run_script(await machine.agent(), "cat /proc/sys/kernel/random/boot_id")).strip()
    await wait_booted(machine, timeout_s=timeout_s, after_boot=before, report=report)


def _is_up(machine: Machine, told: str, after_boot: str | None) -> bool:
    last = told.strip().rpartition("\n")[2]
    if last == "maintenance":
        raise GuestRefused(
            f"machine '{machine.name}' answers, and is in maintenance mode: its boot failed",
            hint=f"what failed: bough exec {machine.name} -- systemctl --failed",
            machine=machine.name,
        )
    match = BOOTED.fullmatch(last)
    return match is not None and match[1] != after_boot


def _not_up(machine: Machine, waited_s: float, told: str, after_boot: str | None) -> DeadlineExceeded:
    name = machine.name
    if told.strip() == "stopping":
        what, hint = "still shuts down", f"what it waits for: bough exec {name} -- systemctl list-jobs"
    elif BOOTED.search(told) and after_boot is not None:
        what, hint = "has not rebooted", f"to have it reboot: bough exec {name} -- systemctl reboot"
    else:
        what, hint = (
            "answers, and is still starting",
            f"what it waits for: bough exec {name} -- systemctl list-jobs",
        )
    return DeadlineExceeded(f"machine '{name}' {what} after {waited_s:.0f} s", hint=hint, machine=name)


async def wait_boot_end(machine: Machine, report: Report) -> None:
    """Wait for a guest that is still booting, so that no fork has to boot on; of a machine that runs and has
    our agent. What keeps the guest is told, and no error."""
    if machine.state is not State.RUNNING or not machine.record.image_agent or machine.booted:
        return
    if machine.channel() is None:
        report(
            notice("the agent does not answer: the guest may still be booting, and its forks then boot on")
        )
        return
    try:
        await wait_booted(machine, report=report)
    except BoughError as error:
        report(notice(f"the guest may still be booting, as its forks will: {error.message}"))
