"""Waiting until a guest has started all that it starts: its agent answers long before that."""

from __future__ import annotations

from bough.errors import DeadlineExceeded
from bough.machines.first_boot import run_script
from bough.machines.machine import Machine
from bough.progress import Progress, Report, ignore_progress

#: Where systemd starts the rest, it is asked; elsewhere one who answers is up. A network card without an
#: address after half a minute is nothing to wait for: there may be none to be had.
BOOTED_SCRIPT = """
booted() {
  [ -d /run/systemd/system ] || return 0
  while :; do
    case $(systemctl is-system-running 2>/dev/null) in
      initializing|starting|offline) sleep 0.2 ;;
      *) break ;;
    esac
  done
  [ -d /run/systemd/netif ] && [ "$(ls /sys/class/net | wc -l)" -gt 1 ] || return 0
  /usr/lib/systemd/systemd-networkd-wait-online --any --timeout=30 2>/dev/null
}
booted
"""


async def wait_booted(machine: Machine, *, timeout_s: float, report: Report = ignore_progress) -> None:
    """Until its init has started everything, its network too. Within `timeout_s` after its agent answers.

    Raises:
        AgentTimeout, MachineFailed, GuestRefused: as wait_ready() of the machine.
        DeadlineExceeded: it answers, and is still starting something.
    """
    await machine.wait_ready(timeout_s=timeout_s, report=report)
    report(Progress("waiting until it is up"))
    try:
        await run_script(await machine.agent(), BOOTED_SCRIPT, timeout_s=timeout_s)
    except DeadlineExceeded:
        raise DeadlineExceeded(
            f"machine '{machine.name}' answers, and is still starting after {timeout_s:.0f} s",
            hint=f"what it waits for: bough exec {machine.name} -- systemctl list-jobs",
            machine=machine.name,
        ) from None
