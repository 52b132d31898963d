"""A guest's clock that is wrong on purpose, while time synchronization inside is stopped.

The record of the machine has the fault (`ClockFault`), so bough's own setting of the clock keeps it. The
hardware clock stays right.
"""

from __future__ import annotations

from bough.errors import GuestRefused
from bough.machines.clock import set_clock
from bough.machines.faults.guest_script import run_script
from bough.machines.machine import Machine

_STOP = """
for unit in systemd-timesyncd chrony chronyd ntp ntpd ntpsec openntpd; do
    if command -v systemctl >/dev/null && systemctl is-active --quiet "$unit"; then
        systemctl stop "$unit" && echo "$unit"
    fi
done
exit 0
"""
#: $1: parts per million; $2, $3: the same as freq (ppm << 16) and tick (us of 10 ms) of adjtimex(2), on a
#: 64-bit system.
_DRIFT = """
command -v python3 >/dev/null || {
    for busybox in "$(command -v busybox)" /.bough/bin/busybox /run/bough/disk/bin/busybox; do
        [ -x "$busybox" ] && exec "$busybox" adjtimex -q -f "$2" -t "$3" >/dev/null
    done
    echo "it has no python3 and no busybox, which a drift needs" >&2
    exit 1
}
exec python3 -I -S -c '
import ctypes, sys
ppm = float(sys.argv[1])
tick = 10000 + round(ppm / 100)
words = (ctypes.c_long * 32)()
words[0], words[2], words[11] = 0x4002, round((ppm - (tick - 10000) * 100) * 65536), tick
libc = ctypes.CDLL(None, use_errno=True)
if ctypes.sizeof(ctypes.c_long) != 8 or libc.adjtimex(words) < 0:
    sys.exit("adjtimex refuses a drift of %g ppm" % ppm)
' "$1"
"""
_START = 'for unit in "$@"; do systemctl start --no-block "$unit"; done'


async def stop_synchronization(machine: Machine) -> list[str]:
    """Stop the services that would set the clock. Return their names."""
    return (await run_script(machine, _STOP)).split()


async def start_synchronization(machine: Machine, units: list[str]) -> None:
    if units:
        await run_script(machine, _START, *units)


async def set_drift(machine: Machine, ppm: float) -> None:
    """Make the guest's clock too fast by so many parts per million. Raises GuestRefused, AgentUnavailable."""
    tick = 10_000 + round(ppm / 100)
    freq = round((ppm - (tick - 10_000) * 100) * 65_536)
    await run_script(machine, _DRIFT, f"{ppm:.9f}", str(freq), str(tick))


async def apply_clock(machine: Machine) -> None:
    """Set the guest's clock as the machine's record says. Raises AgentUnavailable, GuestRefused."""
    await machine.agent()
    channel = machine.answering()
    if channel is None:
        raise GuestRefused(f"the guest of machine '{machine.name}' has no agent", machine=machine.name)
    await set_clock(channel, machine.record)
