"""Know whether a guest has started all services, without a request from a user.

An agent answers long before the boot has ended. A script in the guest waits for the end, once for each boot.
The record keeps the result with the boot's id, so a fork knows the result from its parent.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Coroutine
from typing import Any, Protocol, TypeVar

from bough.errors import BoughError, DeadlineExceeded
from bough.guest.channel import AgentChannel
from bough.guest.facts import clean_name
from bough.guest.qga import QgaChannel
from bough.machines.first_boot import run_script
from bough.machines.record import MachineRecord
from bough.progress_watch import ProgressWatch, Stalled

#: Wait for the end of the boot of a guest with systemd. The last line of output is "booted" with the boot's
#: id, "stopping" or "maintenance". An empty answer of systemctl is ignored: a stopping or just started
#: systemd gives such an answer. An inhibitor may delay a reboot although logind has the request. The wait for
#: an address of a network card ends after 30 s: the network may have no address to give. Without systemd, and
#: with an agent that knows no other init, the boot has ended when the agent answers.
BOOTED_SCRIPT = """
booted() {
  read -r boot < /proc/sys/kernel/random/boot_id
  [ -d /run/systemd/system ] || { echo "booted $boot"; return; }
  systemctl is-system-running --wait >/dev/null 2>&1
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
BOOTED = re.compile(r"booted ([0-9a-f-]{36})\s*")
#: The guest's init does not tell when the boot has ended.
UNKNOWN = re.compile(r"unknown ([0-9a-f-]{36})\s*")
LOOK_AGAIN_S = 0.5
#: Guest time without a sign of progress after which the script is started again.
_QUIET_S = 600.0

T = TypeVar("T")


class Host(Protocol):
    """The parts of a machine for a Boot."""

    @property
    def record(self) -> MachineRecord: ...

    @property
    def boot_id(self) -> str | None: ...
    def change(self, **fields: Any) -> None: ...
    def own(self, work: Coroutine[Any, Any, T], what: str) -> asyncio.Task[T]: ...
    def tell(self, kind: str, detail: str = "") -> None: ...


class Boot:
    """The current boot of one machine's guest."""

    def __init__(self, machine: Host) -> None:
        self._machine = machine
        self._asking: asyncio.Task[str] | None = None
        self._began = 0.0

    @property
    def has_ended(self) -> bool:
        """Return whether the boot has ended; False if unknown."""
        known = self._machine.record.booted_boot
        return known is not None and known == self._machine.boot_id

    def follow(self, channel: AgentChannel) -> None:
        """Find out when the boot ends, in a task. The agent has just answered."""
        if not self.has_ended and not self._machine.record.standby:
            self._machine.own(self._follow(channel), "wait for the end of the boot")

    async def _follow(self, channel: AgentChannel) -> None:
        while not self.has_ended:
            try:
                told = await self.ask(channel)
                if self.note(told) or UNKNOWN.fullmatch(told):
                    return
            except DeadlineExceeded:
                continue
            except BoughError:
                return  # the agent stopped answering; the next answer begins a new task
            await asyncio.sleep(LOOK_AGAIN_S)

    async def ask(
        self, channel: AgentChannel | QgaChannel, watch: ProgressWatch | None = None, *, since: float = 0.0
    ) -> str:
        """Return how the boot ended, in the words of BOOTED_SCRIPT, or "unknown" with the boot's id. Parallel
        calls share one run of the script.

        Args:
            since: time.monotonic() of the caller's request. An earlier run may have looked for a shutdown
                before the guest began to shut down. So the "booted" of that run is not believed, and the
                script runs again.

        Raises:
            DeadlineExceeded: the wait ended first.
            AgentUnavailable: the agent stopped answering.
        """
        while True:
            told, began = await self._share(channel, watch)
            if began >= since or not BOOTED.search(told):
                return told

    async def _share(
        self, channel: AgentChannel | QgaChannel, watch: ProgressWatch | None
    ) -> tuple[str, float]:
        """Return the output of the present or a new run, and the time at which the run began."""
        if self._asking is None or self._asking.done():
            self._began = time.monotonic()
            self._asking = self._machine.own(_await_boot(channel), "ask for the end of the boot")
            self._asking.add_done_callback(_retrieve)
        began, answer = self._began, asyncio.shield(self._asking)
        try:
            return await (answer if watch is None else watch.run(answer)), began
        except Stalled as stalled:
            raise DeadlineExceeded(f"the guest was not done {stalled}") from None

    def note(self, told: str) -> bool:
        """Record the end of the boot if `told` reports the end. Return whether `told` does."""
        match = BOOTED.fullmatch(told.strip().rpartition("\n")[2])
        if match is None:
            return False
        if match[1] != self._machine.record.booted_boot:
            self._machine.change(booted_boot=match[1])
            self._machine.tell("booted")
        return True


async def _await_boot(channel: AgentChannel | QgaChannel) -> str:
    """Return how the boot ended: by systemd's own tools, or by the agent's knowledge of other inits."""
    facts = channel.facts if isinstance(channel, AgentChannel) else None
    if facts is None or facts.init in ("", "systemd"):
        return await run_script(channel, BOOTED_SCRIPT, timeout_s=_QUIET_S)
    assert isinstance(channel, AgentChannel)
    told = await channel.call("await_boot", {"timeout_s": _QUIET_S}, timeout_s=_QUIET_S + LOOK_AGAIN_S)
    state = clean_name(told.get("state"))
    word = {"running": "booted", "unknown": "unknown"}.get(state)
    return state if word is None else f"{word} {clean_name(told.get('boot_id'))}"


def _retrieve(task: asyncio.Task[str]) -> None:
    """Fetch the task's exception: maybe no caller waits for the task any more."""
    if not task.cancelled():
        task.exception()
