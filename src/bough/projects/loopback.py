"""Loopback addresses of projects. Each project publishes its ports on an address of its own.

So ten copies of a project listen on port 5432, and no port is reachable from other hosts. Linux lets any user
listen on each address of 127.0.0.0/8.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from ipaddress import IPv4Address

from bough.errors import Conflict

_FIRST = int(IPv4Address("127.1.0.1"))
#: 127.0.x.y belongs to programs of the host. The last address is a broadcast address.
_COUNT = int(IPv4Address("127.255.255.255")) - _FIRST
_BYTE = 256


def choose_loopback(project_id: str, taken: Collection[str]) -> str:
    """Return an address that derives from the id; the next free one if a project has the address.

    Raises:
        Conflict: no address is free.
    """
    start = int.from_bytes(hashlib.sha256(project_id.encode()).digest()[:8], "big") % _COUNT
    for step in range(_COUNT):
        number = _FIRST + (start + step) % _COUNT
        address = str(IPv4Address(number))
        # Readers take an address that ends in 0 or 255 for a network or a broadcast.
        if number % _BYTE not in (0, _BYTE - 1) and address not in taken:
            return address
    raise Conflict("no loopback address is free for another project", hint="delete a project")
