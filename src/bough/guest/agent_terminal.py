"""Logins on a terminal: which TERM, and whether there is a login session."""

# pathlib costs an emulated guest 20 ms to load.
# ruff: noqa: PTH110

from __future__ import annotations

import os

_PLACES = ("/etc/terminfo", "/lib/terminfo", "/usr/share/terminfo", "/usr/lib/terminfo")
#: Terminals of today understand these.
_FALLBACKS = ("xterm-256color", "xterm", "vt220", "vt100", "linux")


def choose_term(asked: str | None, home: str) -> str:
    """`asked`, where the guest knows it; otherwise what is most like it. Programs refuse unknown ones."""
    names = [name for name in (asked, *_FALLBACKS) if name]
    places = (home + "/.terminfo", *_PLACES)
    for name in names:
        if "/" not in name and name.isprintable() and _is_known(name, places):
            return name
    return names[0]  # no descriptions at all: none is better than another


def _is_known(name: str, places: tuple[str, ...]) -> bool:
    # By its first letter, or that one's number where the file system knows no upper case.
    paths = (f"{place}/{of}/{name}" for place in places for of in (name[0], f"{ord(name[0]):x}"))
    return any(map(os.path.exists, paths))


def render_login(user: str | None) -> list[bytes] | None:
    """What root runs to log a user in: PAM gives limits, a session of logind, and a user manager.

    None: PAM's su is not there, the user has no entry, or it is ours: the shell is started as that user.
    """
    if not user or ":" in user or not os.path.exists("/etc/pam.d/su-l"):
        return None
    from bough.guest.agent_login import Identity

    identity = Identity(user)
    if identity.entry is None or identity.groups is None:
        return None
    return [b"su", b"-l", os.fsencode(identity.entry.pw_name)]
