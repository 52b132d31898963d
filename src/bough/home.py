"""Which BOUGH_HOME is meant, and the door of its service. Every command asks this first: it imports nothing
that takes time."""

from __future__ import annotations

import os

#: In a BOUGH_HOME: leads to its runtime directory, whose name takes a hash to find.
RUNTIME_LINK = "run"
API_SOCKET = "api.sock"
#: Exit status of a service that finds another one in its place (sysexits.h, EX_TEMPFAIL).
ANOTHER_SERVES = 75


def find_home() -> str:
    """$BOUGH_HOME, or what is the user's without it."""
    given = os.environ.get("BOUGH_HOME")
    if given:
        return given
    data = os.environ.get("XDG_DATA_HOME")
    if data is None and os.geteuid() == 0:
        return "/var/lib/bough"
    return os.path.join(data or os.path.expanduser("~/.local/share"), "bough")  # noqa: PTH111, PTH118
