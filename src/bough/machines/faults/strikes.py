"""Faults that happen at once: a crash of QEMU, a power cut, a reset, a panic, the kill of a service."""

from __future__ import annotations

import asyncio
import re

from bough.errors import BoughError, GuestRefused, InvalidInput
from bough.guest.session import ExecRequest
from bough.machines.faults.guest_script import run_script
from bough.machines.machine import Machine
from bough.machines.state import State
from bough.tasks import wait_first

_END_S = 60.0
_PANIC_S = 30.0
_WORD = re.compile(r"[A-Za-z0-9:_.@\\-]{1,200}")
_SIGNAL = re.compile(r"(?:SIG)?([A-Z0-9+]{1,12})")

_PANIC = "sync; echo 1 >/proc/sys/kernel/sysrq && echo c >/proc/sysrq-trigger"
_KILL_UNIT = """
command -v systemctl >/dev/null || { echo "it has no systemd; give a process instead" >&2; exit 1; }
state=$(systemctl show --property LoadState --value -- "$1")
[ "$state" = loaded ] || { echo "no unit $1" >&2; exit 1; }
[ "$(systemctl show --property ActiveState --value -- "$1")" != inactive ] || {
    echo "unit $1 does not run" >&2; exit 1; }
exec systemctl kill --signal "$2" -- "$1"
"""
_KILL_PROCESS = """
found=
for file in /proc/[0-9]*/comm; do
    pid=${file#/proc/}; pid=${pid%/comm}
    [ "$pid" != $$ ] && read -r name 2>/dev/null <"$file" && [ "$name" = "$1" ] && found="$found $pid"
done
[ -n "$found" ] || { echo "no process $1" >&2; exit 1; }
kill -s "$2" $found
"""


async def crash(machine: Machine) -> None:
    """Kill QEMU, as by a crash. The machine fails, and its restart policy applies. Raises WrongState."""
    async with machine.operation("crashing", State.RUNNING, State.PAUSED):
        machine.vm.require_process().kill()
        await wait_first(_END_S, machine.vm.ended)


async def cut_power(machine: Machine) -> None:
    """End QEMU at once. The machine is stopped. What the host's page cache has is kept."""
    if machine.state not in (State.RUNNING, State.PAUSED):
        raise machine.wrong_state("a power cut", State.RUNNING, State.PAUSED)
    await machine.stop(force=True, flush=False)


async def reset(machine: Machine) -> None:
    """Press the reset button: the guest boots, without a chance to write its data."""
    async with machine.operation("being reset", State.RUNNING):
        await machine.qmp().execute("system_reset")


async def panic(machine: Machine) -> None:
    """Have the guest's Linux panic. Return when the panic was seen.

    Raises:
        GuestRefused: the kernel has no SysRq, or does not panic.
        AgentUnavailable
    """
    if machine.state is not State.RUNNING:
        raise machine.wrong_state("a panic", State.RUNNING)
    channel = await machine.agent()
    session = await channel.exec(ExecRequest(argv=["/bin/sh", "-c", _PANIC], cwd="/", stdin=False))
    ending = asyncio.ensure_future(_drain(session))
    try:
        if not await wait_first(_PANIC_S, machine.condition.dead, machine.vm.ended):
            raise GuestRefused(f"the guest of machine '{machine.name}' does not panic", machine=machine.name)
    finally:
        ending.cancel()


async def _drain(session: object) -> None:
    """Read the output of the command that ends the guest."""
    try:
        async for _ in session:  # type: ignore[attr-defined]
            pass
    except BoughError:
        pass  # the guest has ended


async def kill_in_guest(machine: Machine, *, unit: str | None, process: str | None, signal: str) -> None:
    """Send a signal to all processes of a systemd unit, or to all processes of a name.

    Raises:
        InvalidInput: not one of `unit` and `process`, or no signal.
        GuestRefused: no such unit or process.
        WrongState, AgentUnavailable
    """
    if (unit is None) == (process is None):
        raise InvalidInput("give a unit or a process", hint="bough fault kill MACHINE nginx.service")
    name = unit or process or ""
    found = _SIGNAL.fullmatch(signal.upper())
    if found is None:
        raise InvalidInput(f"{signal[:20]!r} is no signal", hint="KILL, TERM, STOP, ...")
    if not _WORD.fullmatch(name) or name.startswith("-"):
        raise InvalidInput(f"{name[:40]!r} is no name of a {'unit' if unit else 'process'}")
    if machine.state is not State.RUNNING:
        raise machine.wrong_state("a kill of a service", State.RUNNING)
    if unit is not None:
        full = name if "." in name else f"{name}.service"
        await run_script(machine, _KILL_UNIT, full, f"SIG{found[1]}")
    else:
        # The kernel keeps 15 bytes of a process name.
        await run_script(machine, _KILL_PROCESS, name[:15], found[1])
