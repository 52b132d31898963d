"""The DNS names of a machine on a network.

db              the machine
db.back         the machine on the network "back"
db.shop         the machine in the project "shop"
primary         an alias, also as primary.back and primary.shop
"""

from __future__ import annotations

from collections.abc import Sequence


def names_of(
    machine: str, network: str, *, domain: str | None = None, aliases: Sequence[str] = ()
) -> tuple[str, ...]:
    """Return all names of a machine on a network; its own name is the first."""
    domains = domains_of(network, domain=domain)
    return tuple(
        dict.fromkeys(
            name
            for word in dict.fromkeys((machine.lower(), *map(str.lower, aliases)))
            for name in (word, *(f"{word}.{one}" for one in domains))
        )
    )


def domains_of(network: str, *, domain: str | None = None) -> tuple[str, ...]:
    """Return the domains that the resolver of a network alone knows."""
    return tuple(dict.fromkeys(name.lower() for name in (network, domain) if name))
