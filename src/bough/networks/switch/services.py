"""Services on the switch's own address: ARP, neighbor discovery, DHCP, DNS and IPv6 router advertisements.

Frames for the outside are the gateway's (gateway.py). A machine reaches nothing else of the switch. dpkt and
dnslib parse a machine's packets; a malformed packet is dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from bough.networks.switch.advertisement import ALL_ROUTERS, Advertisements
from bough.networks.switch.dhcp import Dhcp
from bough.networks.switch.dns import PASS_ON, Zone
from bough.networks.switch.guard import ARP, HEADER_BYTES, IPV4, UDP
from bough.networks.switch.neighbor import Neighbor
from bough.networks.switch.packets import checksum
from bough.networks.switch.settings import Member, Settings

BROADCAST = b"\xff" * 6
_ARP_REQUEST, _ARP_ANSWER = b"\x00\x01", b"\x00\x02"
_ARP_OF_IPV4 = b"\x00\x01\x08\x00\x06\x04"
_DHCP_SERVER, _DNS = 67, 53
_IP_BYTES, _UDP_BYTES = 20, 8


class Services:
    """Answers the frames that are for the switch.

    Args:
        used: see Guard.
        pass_on: sends the frame with a machine's DNS query to the outside.
    """

    def __init__(
        self,
        settings: Settings,
        used: Collection[bytes],
        pass_on: Callable[[bytes, Member], None] = lambda *_: None,
    ) -> None:
        self._mac = settings.mac
        self._address = settings.address.ip.packed
        self._dhcp = Dhcp(settings)
        self._zone = Zone(settings, used)
        self._advertisements = Advertisements(settings)
        self._neighbor = Neighbor(settings)
        self._pass_on = pass_on

    def know(self, members: Sequence[Member]) -> None:
        """Replace the members, whose names DNS answers."""
        self._zone.fill(members)

    def answer(self, frame: bytes, member: Member) -> list[bytes] | None:
        """Return the answers to a frame for the switch; None: the frame is for other machines."""
        if frame[:6] == ALL_ROUTERS and member.advertised:
            return self._advertisements.answer(frame, is_router=member.gateway6)
        if member.gateway6 and (answers := self._answer_neighbor(frame, member)) is not None:
            return answers
        to_switch = frame[:6] == self._mac
        if not to_switch and frame[:6] != BROADCAST:
            return None
        kind = frame[12:14]
        answers = None
        if kind == ARP:
            answers = self._answer_arp(frame)
        elif kind == IPV4:
            answers = self._answer_udp(frame, member)
        return [] if answers is None and to_switch else answers

    def _answer_neighbor(self, frame: bytes, member: Member) -> list[bytes] | None:
        answers = self._neighbor.answer(frame)
        if answers is not None and member.advertised:  # the guest goes on to use the router
            answers.append(self._advertisements.render(frame[6:12], frame[22:38], is_router=True))
        return answers

    def _answer_arp(self, frame: bytes) -> list[bytes] | None:
        """The guard has checked the sender's addresses and the length."""
        if frame[20:22] != _ARP_REQUEST or frame[38:42] != self._address:
            return None
        body = _ARP_OF_IPV4 + _ARP_ANSWER + self._mac + self._address + frame[22:32]
        return [frame[6:12] + self._mac + ARP + body]

    def _answer_udp(self, frame: bytes, member: Member) -> list[bytes] | None:
        found = read_udp(frame)
        if found is None:
            return None
        source, to, port, payload = found
        if to == _DHCP_SERVER:
            answer = self._dhcp.answer(payload, member)
            return [] if answer is None else [self._frame(frame[6:12], *answer)]
        if to == _DNS and frame[30:34] == self._address:
            message = self._zone.answer(payload, member)
            if message == PASS_ON:
                self._pass_on(frame, member)
                return []
            answer_to = (source, port, _DNS)
            return [] if message is None else [self._frame(frame[6:12], message, *answer_to)]
        return None

    def _frame(self, mac: bytes, payload: bytes, address: bytes, port: int, from_port: int) -> bytes:
        """Return a frame with a UDP datagram from the switch."""
        size = _UDP_BYTES + len(payload)
        datagram = from_port.to_bytes(2, "big") + port.to_bytes(2, "big") + size.to_bytes(2, "big")
        pseudo = self._address + address + b"\0\x11" + size.to_bytes(2, "big")
        # A UDP checksum of 0 means "no checksum".
        total = checksum(pseudo + datagram + b"\0\0" + payload) or 0xFFFF
        header = b"\x45\0" + (_IP_BYTES + size).to_bytes(2, "big") + b"\0\0\x40\0\x40\x11"
        ends = self._address + address
        header += checksum(header + b"\0\0" + ends).to_bytes(2, "big") + ends
        return mac + self._mac + IPV4 + header + datagram + total.to_bytes(2, "big") + payload


def read_udp(frame: bytes) -> tuple[bytes, int, int, bytes] | None:
    """Return sender, port, sender's port and payload of an unfragmented UDP datagram, else None."""
    at = HEADER_BYTES
    if frame[at + 9] != UDP or frame[at + 6] & 0x3F or frame[at + 7]:
        return None
    udp = at + (frame[at] & 15) * 4
    end = udp + int.from_bytes(frame[udp + 4 : udp + 6], "big")
    if len(frame) < udp + _UDP_BYTES or not udp + _UDP_BYTES <= end <= len(frame):
        return None
    source, to = (int.from_bytes(frame[udp + n : udp + n + 2], "big") for n in (0, 2))
    return frame[at + 12 : at + 16], to, source, frame[udp + _UDP_BYTES : end]
