"""Decide the MAC addresses of a machine's network cards.

A new machine, and a fork with a new identity, gets a random address for each card without an address in the
spec.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable

#: QEMU's own prefix, in use by virtual machines of many programs.
_PREFIX = "52:54:00"


def choose_mac_addresses(wanted: Iterable[str | None]) -> list[str]:
    """Return an address for each card: the wanted address, or a random unicast address for None."""
    asked = list(wanted)
    taken = {mac for mac in asked if mac is not None}
    chosen = []
    for mac in asked:
        address = mac or _random_address(taken)
        taken.add(address)
        chosen.append(address)
    return chosen


def _random_address(taken: set[str]) -> str:
    while True:
        address = f"{_PREFIX}:{secrets.token_bytes(3).hex(':')}"
        if address not in taken:
            return address
