"""Set addresses of network cards in a guest without systemd-networkd, over rtnetlink."""

# contextlib costs an emulated guest 20 ms to load.
# ruff: noqa: SIM105

from __future__ import annotations

import os

from bough.guest import agent_resolver, agent_rtnetlink, agent_uplink
from bough.guest.agent_calls import leave_agent, list_of_text

_MOST_LINKS = 64


def set_plain_links(links: list[dict[str, object]], uplinks: list[str]) -> int:
    """Set the addresses now, the rest at the end of the boot. Return the number of changed cards.

    Also removes a parent's addresses from a fork's card: other addresses of the same subnet, whose frames
    the switch drops.
    """
    _bring_loopback_up()
    changed = sum(_set(link) for link in links[:_MOST_LINKS])
    # The resolver of the way outside denies the names of other networks, so it comes last.
    ordered = sorted(links, key=lambda link: bool(link.get("gateways")))
    resolvers = [str(link["resolver"]) for link in ordered if link.get("resolver")]
    domains = [name for link in links for name in list_of_text(link.get("domains")) if name[:1] != "~"]
    agent_resolver.keep_lines(resolvers, domains)
    if not agent_uplink.is_boot_over():
        _finish_later(uplinks)
        return changed
    agent_resolver.apply_lines()
    if agent_uplink.cards_without_address(uplinks):
        _finish_later(uplinks)  # DHCP may take seconds
    return changed


def _bring_loopback_up() -> None:
    """Bring the loopback up: without ifupdown or the like, nothing else does, and ports of it hang."""
    try:
        agent_rtnetlink.bring_up("lo")
    except OSError:
        pass  # a kernel without it


def _finish_later(uplinks: list[str]) -> None:
    """Finish in a child process. The host does not wait for the end of the boot."""
    if os.fork() == 0:
        try:
            leave_agent()
            agent_uplink.finish_network(uplinks)
        finally:
            os._exit(0)


def _set(link: dict[str, object]) -> bool:
    """Give the card exactly the link's addresses of the link's subnets. Return whether any has changed."""
    card = agent_rtnetlink.find_card(str(link["mac"]))
    if card is None:
        return False  # unplugged meanwhile, or its driver is not loaded yet
    mtu = link.get("mtu")
    agent_rtnetlink.bring_up(card, mtu if isinstance(mtu, int) else None)
    wanted = [agent_rtnetlink.parse_address(text) for text in list_of_text(link.get("addresses"))]
    present = agent_rtnetlink.addresses_of(card)
    stale = [
        one
        for one in present
        if one not in wanted and any(agent_rtnetlink.is_in(one[0], network) for network in wanted)
    ]
    missing = [one for one in wanted if one not in present]
    for address in stale:
        agent_rtnetlink.remove_address(card, address)
    for address in missing:
        agent_rtnetlink.add_address(card, address)
    for gateway in list_of_text(link.get("gateways")):
        agent_rtnetlink.set_default_route(card, agent_rtnetlink.parse_address(gateway)[0])
    return bool(stale or missing)
