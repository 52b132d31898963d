"""Bounds of a wait for a guest, by its console, agent messages and processor time."""

from __future__ import annotations

from bough.machines.console import Console
from bough.machines.guest import Guest
from bough.progress_watch import MOST_S, ProgressWatch, Sign
from bough.qemu.pid import Pid

#: For a guest that boots: systemd waits 90 s for a missing device, without output.
BOOT_QUIET_S = 120.0
#: For a guest that is set up: unpacking a package takes minutes without output.
SET_UP_QUIET_S = 600.0
#: For a shutdown, and the end of the wait for a shutdown. systemd kills remaining processes after 90 s.
STOP_QUIET_S = 60.0
STOP_MOST_S = 180.0
#: The end of a wait for a guest that shows progress without end.
_MOST_TIMES_QUIET = 30


def guest_signs(console: Console | None, guest: Guest) -> list[Sign]:
    """Return observers of the guest's signs of progress."""
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
    """Return a watch that begins now, over QEMU's process `pid`.

    Args:
        bound_s: a user's bound: the wait ends exactly then.
    """
    work = Pid.of(pid) if pid is not None else None
    most_s = most_s or max(quiet_s, min(MOST_S, _MOST_TIMES_QUIET * quiet_s))
    return ProgressWatch(quiet_s, most_s=most_s, bound_s=bound_s, signs=signs, work=work)
