"""Wait until a guest has started all that it starts: its agent answers long before that."""

from __future__ import annotations

import asyncio
import re

from bough.errors import AgentUnavailable, DeadlineExceeded, GuestRefused
from bough.machines.first_boot import run_script
from bough.machines.machine import Machine
from bough.progress import Progress, Report, ignore_progress

#: The last line tells how it is: "booted" with the id of the boot, "stopping" or "maintenance". systemd is
#: asked where it runs; elsewhere a guest that answers is up. An empty answer of systemctl is no answer: a
#: systemd that stops, or has just begun, gives none. An inhibitor may delay a reboot that logind knows of.
#: A network card without an address after half a minute is not waited for: there may be no address to be had.
BOOTED_SCRIPT = """
booted() {
  read -r boot < /proc/sys/kernel/random/boot_id
  [ -d /run/systemd/system ] || { echo "booted $boot"; return; }
  while :; do
    state=$(systemctl is-system-running 2>/dev/null)
    case $state in
      running|degraded) break ;;
      stopping|maintenance) echo "$state"; return ;;
      *) sleep 0.2 ;;
    esac
  done
  case $(busctl --auto-start=no get-property org.freedesktop.login1 /org/freedesktop/login1 \\
      org.freedesktop.login1.Manager PreparingForShutdown 2>/dev/null) in
    *true) echo stopping; return ;;
  esac
  if [ -d /run/systemd/netif ] && [ "$(ls /sys/class/net | wc -l)" -gt 1 ]; then
    /usr/lib/systemd/systemd-networkd-wait-online --any --timeout=30 >/dev/null 2>&1
  fi
  echo "booted $boot"
}
booted
"""
_BOOTED = re.compile(r"booted ([0-9a-f-]{36})\s*")
_LOOK_AGAIN_S = 0.5


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
            told = await run_script(channel, BOOTED_SCRIPT, watch=watch)
        except AgentUnavailable:
            if not answered and not machine.record.image_agent:
                raise
            told = ""
        except DeadlineExceeded:
            break
        if _is_up(machine, told, after_boot):
            return
        await asyncio.sleep(_LOOK_AGAIN_S)
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
    match = _BOOTED.fullmatch(last)
    return match is not None and match[1] != after_boot


def _not_up(machine: Machine, waited_s: float, told: str, after_boot: str | None) -> DeadlineExceeded:
    name = machine.name
    if told.strip() == "stopping":
        what, hint = "still shuts down", f"what it waits for: bough exec {name} -- systemctl list-jobs"
    elif _BOOTED.search(told) and after_boot is not None:
        what, hint = "has not rebooted", f"to have it reboot: bough exec {name} -- systemctl reboot"
    else:
        what, hint = (
            "answers, and is still starting",
            f"what it waits for: bough exec {name} -- systemctl list-jobs",
        )
    return DeadlineExceeded(f"machine '{name}' {what} after {waited_s:.0f} s", hint=hint, machine=name)
