"""Router advertisements (RFC 4861, 4.2): the network's IPv6 prefix, for guests that configure themselves.

A guest without the agent asks when its card comes up, and derives its address from the prefix and the card's
MAC address: the address that the service knows. A lifetime of 0 tells that the switch is no router. The
gateway is a router for 18 hours, counted anew from each of the guest's questions where the gateway is.
"""

from __future__ import annotations

from bough.networks.switch.guard import HEADER_BYTES, ICMPV6, IPV6
from bough.networks.switch.packets import IPV6_BYTES, link_local, render_icmpv6
from bough.networks.switch.settings import Settings

#: The MAC address of the group of all routers, to which guests send their requests.
ALL_ROUTERS = b"\x33\x33\x00\x00\x00\x02"
_ALL_NODES = b"\xff\x02" + bytes(13) + b"\x01"
_SOLICITATION, _ADVERTISEMENT = 133, 134
_GUEST_HOPS = 64
#: The longest lifetime of a router (RFC 8319).
_LONGEST = b"\xff\xff"
_FOREVER = b"\xff" * 4
#: Options: the sender's MAC address, the prefix, the MTU. The flags: on this link, and for own addresses.
_SOURCE, _PREFIX, _MTU, _OWN = 1, 3, 5, 0xC0


class Advertisements:
    def __init__(self, settings: Settings) -> None:
        self._mac = settings.mac
        self._address = link_local(settings.mac)
        network = settings.address6.network
        prefix = bytes((_PREFIX, 4, network.prefixlen, _OWN)) + _FOREVER * 2 + bytes(4)
        self._options = (
            bytes((_SOURCE, 1))
            + settings.mac
            + bytes((_MTU, 1, 0, 0))
            + settings.mtu.to_bytes(4, "big")
            + prefix
            + network.network_address.packed
        )

    def answer(self, frame: bytes, *, is_router: bool) -> list[bytes] | None:
        """Return the answer to a request for routers; None: the frame is something else.

        Args:
            is_router: the switch is the asking machine's gateway for IPv6.
        """
        at = HEADER_BYTES + IPV6_BYTES
        is_asked = frame[12:14] == IPV6 and frame[20:21] == bytes((ICMPV6,)) and len(frame) >= at + 8
        if not is_asked or frame[at] != _SOLICITATION:
            return None
        source = frame[22:38]
        return [self.render(frame[6:12], source if any(source) else _ALL_NODES, is_router=is_router)]

    def render(self, mac: bytes, to: bytes, *, is_router: bool) -> bytes:
        """Return the frame with an advertisement for one machine."""
        lifetime = _LONGEST if is_router else bytes(2)
        # Hop limit for the guests' packets, no flags; 0 for: reachable time, timer.
        body = bytes((_GUEST_HOPS, 0)) + lifetime + bytes(4 + 4) + self._options
        return render_icmpv6((mac, self._mac), (self._address, to), _ADVERTISEMENT, body)
