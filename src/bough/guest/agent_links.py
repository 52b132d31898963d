"""Set addresses and names of network cards on networks between machines.

A guest with systemd-networkd gets a file of networkd. In other guests the agent sets the addresses itself.
The network's switch gives the same addresses by DHCP, so a DHCP client of the guest does not conflict.
"""

# pathlib costs an emulated guest 20 ms to load.
# ruff: noqa: PTH112, PTH118, PTH123

from __future__ import annotations

import _socket
import os
import time

from bough.guest.agent_calls import list_of_text, run
from bough.guest.agent_identity import write_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bough.guest.agent_calls import Arguments, Tell

_DIRECTORY = "/run/systemd/network"
#: Exists while networkd runs.
_RUNS = "/run/systemd/netif"
#: Exist if networkd is enabled.
_ENABLED = (
    "/etc/systemd/system/multi-user.target.wants/systemd-networkd.service",
    "/etc/systemd/system/dbus-org.freedesktop.network1.service",
)
#: networkd returns from a reload before the addresses are set.
_APPLIES_S = 3.0
_LOOK_AGAIN_S = 0.02


def set_links(arguments: Arguments, tell: Tell) -> dict[str, object]:
    """Set the cards.

    {"links": [{"name", "mac", "addresses": [with prefix length], "mtu", "resolver", "domains", "default",
    "gateways"}], "uplinks": [MAC address]} -> {"changed": number of cards}. "default": the resolver answers
    for all names. "gateways": the routers of the default routes.
    The answer comes when a running networkd has set the IPv4 addresses, or after 3 s. A card of `uplinks`
    gets an address by DHCP if the guest has no networkd and sets none itself.
    """
    given = arguments.get("links")
    links = [link for link in given if isinstance(link, dict)] if isinstance(given, list) else []
    if not _has_networkd():
        from bough.guest.agent_plain_links import set_plain_links

        return {"changed": set_plain_links(links, list_of_text(arguments.get("uplinks")))}
    changed = [link for link in links if _set(link)]
    if changed and os.path.isdir(_RUNS):
        run(["networkctl", "reload"])
        _await_addresses(changed)
    return {"changed": len(changed)}


def _has_networkd() -> bool:
    """Return whether networkd runs, or will run in this boot."""
    return any(map(os.path.lexists, (_RUNS, *_ENABLED)))


def _set(link: dict[str, object]) -> bool:
    """Write the settings of a card. Return whether they have changed."""
    # Before the image's own file for all cards. The name is the card's: a fork replaces its parent's file.
    path = os.path.join(_DIRECTORY, f"70-bough-{link['name']}.network")
    content = _render(link).encode()
    try:
        with open(path, "rb") as file:
            if file.read() == content:
                return False
    except OSError:
        pass
    write_file(path, content)
    return True


def _await_addresses(links: list[dict[str, object]]) -> None:
    """Wait until a fork has lost its parent's addresses: the switch drops frames with old addresses."""
    deadline = time.monotonic() + _APPLIES_S
    for link in links:
        for address in list_of_text(link.get("addresses")):
            # Not IPv6: the duplicate address detection takes a second, and IPv4 serves meanwhile.
            while ":" not in address and not _is_set(address.partition("/")[0]):
                if time.monotonic() > deadline:
                    return
                time.sleep(_LOOK_AGAIN_S)


def _is_set(address: str) -> bool:
    sock = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM, 0)
    try:
        sock.bind((address, 0))
    except OSError:
        return False
    finally:
        sock.close()
    return True


def _render(link: dict[str, object]) -> str:
    # With duplicate address detection: the probe shows the guest's IPv6 address to the switch.
    addresses = "".join(f"Address={address}\n" for address in list_of_text(link.get("addresses")))
    gateways = "".join(f"Gateway={address}\n" for address in list_of_text(link.get("gateways")))
    return (
        # Kind: not a bridge or VLAN above the card, with the card's MAC address.
        f"[Match]\nMACAddress={link['mac']}\nKind=!*\n"
        f"[Link]\nMTUBytes={link['mtu']}\n"
        f"[Network]\n{addresses}{gateways}DNS={link['resolver']}\n"
        f"Domains={' '.join(list_of_text(link.get('domains')))}\n"
        f"DNSDefaultRoute={'yes' if link.get('default') else 'no'}\n"
        "LinkLocalAddressing=ipv6\nIPv6AcceptRA=no\nLLMNR=no\nMulticastDNS=no\n"
    )
