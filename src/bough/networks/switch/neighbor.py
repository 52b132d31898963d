"""Neighbor discovery for the gateway (RFC 4861, 7.2): where the switch's IPv6 addresses are.

Guests repeat the question while they use the gateway.
"""

from __future__ import annotations

from bough.networks.switch.guard import HEADER_BYTES, ICMPV6, IPV6
from bough.networks.switch.packets import IPV6_BYTES, link_local, render_icmpv6
from bough.networks.switch.settings import Settings

_SOLICITATION, _ADVERTISEMENT = 135, 136
#: The sender is a router and was asked; the answer replaces what the guest knows.
_FLAGS = b"\xe0\0\0\0"
_TARGET_MAC = bytes((2, 1))


class Neighbor:
    def __init__(self, settings: Settings) -> None:
        self._mac = settings.mac
        self._own = (settings.address6.ip.packed, link_local(settings.mac))

    def answer(self, frame: bytes) -> list[bytes] | None:
        """Return the answer to a question for the switch; None: the frame is something else."""
        at = HEADER_BYTES + IPV6_BYTES
        if frame[12:14] != IPV6 or frame[20] != ICMPV6 or len(frame) < at + 24 or frame[at] != _SOLICITATION:
            return None
        source, target = frame[22:38], frame[at + 8 : at + 24]
        if target not in self._own or not any(source):
            return None
        body = _FLAGS + target + _TARGET_MAC + self._mac
        return [render_icmpv6((frame[6:12], self._mac), (target, source), _ADVERTISEMENT, body)]
