"""Bounds of a message's fields, as metadata of `Annotated`.

Only the service evaluates the annotations and checks the bounds. A client does not import this module.
"""

from __future__ import annotations

from typing import NamedTuple


class Range(NamedTuple):
    """Bounds of a number."""

    least: float | None = None
    above: float | None = None
    most: float | None = None


class Length(NamedTuple):
    """Bounds of the length of a text or of a list."""

    least: int | None = None
    most: int | None = None


class Pattern(NamedTuple):
    """A regular expression that a text matches as a whole."""

    text: str


class HostAddress(NamedTuple):
    """A text that is an IP address of the host."""


class GuestWord(NamedTuple):
    """A text for a command of the guest. On the wire, bytes that are not UTF-8 are {"base64": ...}."""


_MOST_WAIT_S = 7 * 86400.0
WAIT_S = Range(above=0, most=_MOST_WAIT_S)
DEADLINE_S = Range(least=0, most=_MOST_WAIT_S)
FORK_WAIT_S = Range(above=0, most=86400)
COMMAND_S = Range(above=0)
GUEST_PORT = Range(least=1, most=65535)
#: 0: any free port.
HOST_PORT = Range(least=0, most=65535)
LOG_BYTES = Range(least=1, most=2 * 1024 * 1024)
TERMINAL_CELLS = Range(least=1, most=4096)
STANDBY_MACHINES = Range(least=0, most=32)
SEED = Range(least=0, most=2**63 - 1)
FORKS = Range(least=1, most=1000)
FORK_NAMES = Length(most=1000)
