"""Which TERM a command gets: one that the guest has a description of."""

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
