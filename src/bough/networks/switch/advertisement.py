"""Router advertisements (RFC 4861, 4.2): the network's IPv6 prefix, for guests that configure themselves.

A guest without the agent asks when its card comes up, and derives its address from the prefix and the card's
MAC address: the address that the service knows. The switch is no router, which the lifetime of 0 tells.
"""

from __future__ import annotations

from bough.networks.switch.guard import HEADER_BYTES, ICMPV6, IPV6
from bough.networks.switch.packets import checksum, link_local
from bough.networks.switch.settings import Settings

#: The MAC address of the group of all routers, to which guests send their requests.
ALL_ROUTERS = b"\x33\x33\x00\x00\x00\x02"
_ALL_NODES = b"\xff\x02" + bytes(13) + b"\x01"
_SOLICITATION, _ADVERTISEMENT = 133, 134
_IPV6_BYTES = 40
_HOPS, _GUEST_HOPS = b"\xff", 64
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

    def answer(self, frame: bytes) -> list[bytes] | None:
        """Return the answer to a request for routers; None: the frame is something else."""
        at = HEADER_BYTES + _IPV6_BYTES
        is_asked = frame[12:14] == IPV6 and frame[20:21] == bytes((ICMPV6,)) and len(frame) >= at + 8
        if not is_asked or frame[at] != _SOLICITATION:
            return None
        source = frame[22:38]
        return [self._frame(frame[6:12], source if any(source) else _ALL_NODES)]

    def _frame(self, mac: bytes, to: bytes) -> bytes:
        # Hop limit for the guests' packets, no flags, and 0 for: lifetime as a router, reachable time, timer.
        body = bytes((_GUEST_HOPS, 0)) + bytes(2 + 4 + 4) + self._options
        head = bytes((_ADVERTISEMENT, 0))
        size = (len(head) + 2 + len(body)).to_bytes(4, "big")
        pseudo = self._address + to + size + bytes((0, 0, 0, ICMPV6))
        message = head + checksum(pseudo + head + bytes(2) + body).to_bytes(2, "big") + body
        packet = b"\x60\0\0\0" + size[2:] + bytes((ICMPV6,)) + _HOPS + self._address + to + message
        return mac + self._mac + IPV6 + packet
