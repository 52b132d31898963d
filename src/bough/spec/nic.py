"""Network cards of a spec: networks, MAC addresses, models, and the form "NETWORK,mac=...,model=..."."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

#: The host's networks, through the machine's uplink.
UPLINK = "uplink"
#: A link without a neighbour.
ISOLATED = "isolated"
#: The first card, and one for each PCI port (see qemu/nic.py).
MOST_NICS = 8
MOST_ALIASES = 16
Model = Literal["virtio", "e1000", "e1000e", "rtl8139"]

_MAC = re.compile(r"[0-9a-f]{2}(?::[0-9a-f]{2}){5}")
_KEYS = ("mac", "model", "ipv4")


def card(value: Any) -> Any:
    """Read a card from "back", "back,model=e1000e" or "back,ipv4=10.1.0.5", or a table."""
    from bough.spec.problems import did_you_mean, quote, told

    if not isinstance(value, str):
        return value
    network, *rest = value.split(",")
    table = {"network": network}
    for word in rest:
        key, equals, text = word.partition("=")
        if key not in _KEYS or not equals or key in table:
            example = "'back,mac=52:54:00:12:34:56,model=e1000e'"
            hint = did_you_mean(key, _KEYS) if key not in _KEYS else None
            raise told(f"expected a network card like 'back' or {example}, got {quote(value)}", hint)
        table[key] = text
    return table


def mac_address(value: Any) -> str:
    """Check a unicast MAC address, also with "-" or capital letters. Return it in lower case with ":"."""
    from bough.spec.problems import quote, told

    text = value.lower().replace("-", ":") if isinstance(value, str) else ""
    if not _MAC.fullmatch(text) or not int(text.replace(":", ""), 16):
        raise told(f"expected a MAC address like '52:54:00:12:34:56', got {quote(value)}")
    if int(text[:2], 16) & 1:
        hint = f"for example '52{text[2:]}'"
        raise told(f"{quote(value)} is a group address: a card needs an even first byte", hint)
    return text


def ipv4(value: Any) -> str:
    """Check an address of a machine on a network between machines."""
    from ipaddress import IPv4Address

    from bough.spec.problems import quote, told

    try:
        if not isinstance(value, str):
            raise ValueError
        address = IPv4Address(value)
    except ValueError:
        raise told(f"expected an IPv4 address like '10.1.0.5', got {quote(value)}") from None
    if not address.is_private or address.is_loopback or address.is_link_local:
        raise told(f"{address} is not a private address", "use an address of the network's subnet")
    return str(address)


def network(value: Any) -> str:
    """Check the network of a card: the uplink, no network, or the name of a network."""
    from bough.errors import InvalidInput
    from bough.spec.problems import told
    from bough.spec.values import parse_name

    try:
        return parse_name(value)
    except InvalidInput as error:
        raise told(error.message, error.hint) from None


def network_of(value: Any) -> Any:
    """Return the network of a card as given: a text or a table, perhaps not valid."""
    if isinstance(value, str):
        return value.partition(",")[0]
    return value.get("network", UPLINK) if isinstance(value, Mapping) else None


def with_uplink(value: Any) -> Any:
    """Return settings with an `uplink` that tells whether one of the `nics` is on the uplink."""
    given = value.get("nics") if isinstance(value, Mapping) else None
    if not isinstance(given, list | tuple) or not given or "uplink" in value:
        return value
    return {**value, "uplink": UPLINK in map(network_of, given)}
