"""How long a machine's guest is waited for: by its console, its agent's words and its processor time."""

from __future__ import annotations

from bough.machines.console import Console
from bough.machines.guest import Guest
from bough.progress_watch import MOST_S, ProgressWatch, Sign
from bough.qemu.pid import Pid

#: Of a guest that boots: systemd waits 90 s for a device that is missing, and says nothing meanwhile.
BOOT_QUIET_S = 120.0
#: Of a guest that sets itself up: a package that is unpacked says nothing for minutes.
SET_UP_QUIET_S = 600.0
#: Of a guest that shuts down, and the end of that wait: systemd kills after 90 s what does not end.
STOP_QUIET_S = 60.0
STOP_MOST_S = 180.0
#: The end of a wait for a guest that goes on giving signs.
_MOST_TIMES_QUIET = 30


def guest_signs(console: Console | None, guest: Guest) -> list[Sign]:
    """Observers of what a guest says."""
    signs: list[Sign] = [lambda: guest.answers, lambda: getattr(guest.channel, "heard", 0)]
    if console is not None:
        signs.append(lambda: console.printed)
    return signs


def watch_guest(
    pid: int | None,
    signs: list[Sign],
    *,
    quiet_s: float = BOOT_QUIET_S,
    bound_s: float | None = None,
    most_s: float | None = None,
) -> ProgressWatch:
    """A watch that begins now, over the process `pid` of a machine's QEMU.

    Args:
        bound_s: a bound that a user gave: the wait ends then, and not before.
    """
    work = Pid.of(pid) if pid is not None else None
    most_s = most_s or max(quiet_s, min(MOST_S, _MOST_TIMES_QUIET * quiet_s))
    return ProgressWatch(quiet_s, most_s=most_s, bound_s=bound_s, signs=signs, work=work)
