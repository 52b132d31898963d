"""Logins on a terminal: the TERM variable, and the login session."""

# pathlib costs an emulated guest 20 ms to load.
# ruff: noqa: PTH110

from __future__ import annotations

import os

_PLACES = ("/etc/terminfo", "/lib/terminfo", "/usr/share/terminfo", "/usr/lib/terminfo")
#: Today's terminals understand the codes of these names.
_FALLBACKS = ("xterm-256color", "xterm", "vt220", "vt100", "linux")


def choose_term(asked: str | None, home: str) -> str:
    """Return `asked` if the guest knows the terminal, else a similar terminal. Programs refuse unknown
    terminals.
    """
    names = [name for name in (asked, *_FALLBACKS) if name]
    places = (home + "/.terminfo", *_PLACES)
    for name in names:
        if "/" not in name and name.isprintable() and _is_known(name, places):
            return name
    return names[0]  # no descriptions at all: all names are equally good


def _is_known(name: str, places: tuple[str, ...]) -> bool:
    # Directories are named after the first letter, or the letter's number on file systems without upper case.
    paths = (f"{place}/{of}/{name}" for place in places for of in (name[0], f"{ord(name[0]):x}"))
    return any(map(os.path.exists, paths))


def render_login(user: str | None) -> list[bytes] | None:
    """Return root's command for the login of a user. PAM adds limits, a session of logind, and a user
    manager.

    None if PAM's su is missing, the user has no entry, or the user is the agent's own: the shell then starts
    directly as the user.
    """
    if not user or ":" in user or not os.path.exists("/etc/pam.d/su-l"):
        return None
    from bough.guest.agent_login import Identity

    identity = Identity(user)
    if identity.entry is None or identity.groups is None:
        return None
    return [b"su", b"-l", os.fsencode(identity.entry.name)]
