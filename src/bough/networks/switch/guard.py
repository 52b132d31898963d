"""Frames forbidden to a machine.

A machine may not use an address of another machine or of the switch, in ARP, IPv4, IPv6 or neighbor
discovery. A machine may not answer for the switch (DHCP) or for a router (IPv6 router advertisements,
redirects). An address without an owner is free: a virtual address may move between machines. Frames with VLAN
tags are checked like others, because a guest may ignore a tag (VLAN 0).

A frame is refused if the headers are cut off or too deep to be checked.
"""

from __future__ import annotations

from collections.abc import Mapping

HEADER_BYTES = 14
TAG_BYTES = 4
_MOST_TAGS = 4
_MOST_EXTENSIONS = 8

IPV4 = b"\x08\x00"
IPV6 = b"\x86\xdd"
ARP = b"\x08\x06"
TAGS = frozenset((b"\x81\x00", b"\x88\xa8", b"\x91\x00"))
UDP = 17
ICMPV6 = 58
_HOP_BY_HOP, _ROUTING, _FRAGMENT, _AUTHENTICATION, _DESTINATION = 0, 43, 44, 51, 60
_EXTENSIONS = frozenset((_HOP_BY_HOP, _ROUTING, _FRAGMENT, _AUTHENTICATION, _DESTINATION))
_NO_NEXT_HEADER = 59
_ROUTER_ADVERTISEMENT, _SOLICITATION, _ADVERTISEMENT, _REDIRECT = 134, 135, 136, 137
_DHCP_CLIENT = b"\x00\x44"
_DHCPV6_CLIENT = b"\x02\x22"
_ARP_OF_IPV4 = b"\x00\x01\x08\x00\x06\x04"
_NO_ADDRESS = (bytes(4), bytes(16))

#: Reasons for a refusal, which are counted by port.
MALFORMED = "malformed"
SPOOFED_ARP = "spoofed_arp"
SPOOFED_ADDRESS = "spoofed_address"
SPOOFED_NEIGHBOR = "spoofed_neighbor"
DHCP_ANSWER = "dhcp_answer"
ROUTER = "router_advertisement"


class Guard:
    """Checks frames.

    Args:
        owners: address (4 or 16 bytes) -> name of the port that owns the address; "" is the switch.

    Attributes:
        used: IPv6 addresses that their owners have used. A guest may not have set its address.
    """

    def __init__(self, owners: Mapping[bytes, str]) -> None:
        self.used: set[bytes] = set()
        self._owners = owners

    def refuses(self, frame: bytes, port: str) -> str | None:
        """Return why the machine at `port` may not send the frame; None: it may."""
        kind, at = frame[12:14], HEADER_BYTES
        if kind in TAGS:
            kind, at = skip_tags(frame)
        if kind == IPV4:
            return self._refuses_ipv4(frame, at, port)
        if kind == IPV6:
            return self._refuses_ipv6(frame, at, port)
        if kind == ARP:
            return self._refuses_arp(frame, at, port)
        return MALFORMED if kind in TAGS or len(frame) < at else None

    def _is_anothers(self, address: bytes, port: str) -> bool:
        owner = self._owners.get(address)
        return owner is not None and owner != port

    def _refuses_arp(self, frame: bytes, at: int, port: str) -> str | None:
        if len(frame) < at + 28 or frame[at : at + 6] != _ARP_OF_IPV4:
            return MALFORMED
        sender, target = frame[at + 14 : at + 18], frame[at + 24 : at + 28]
        if frame[at + 8 : at + 14] != frame[6:12] or self._is_anothers(sender, port):
            return SPOOFED_ARP
        # After a probe without a sender, a machine with a newly obtained address gives the address up (RFC
        # 5227).
        return SPOOFED_ARP if sender == _NO_ADDRESS[0] and self._is_anothers(target, port) else None

    def _refuses_ipv4(self, frame: bytes, at: int, port: str) -> str | None:
        if len(frame) < at + 20 or not 0x45 <= frame[at] <= 0x4F:
            return MALFORMED
        owner = self._owners.get(frame[at + 12 : at + 16])
        if owner is not None and owner != port:
            return SPOOFED_ADDRESS
        if frame[at + 9] != UDP or (frame[at + 6] & 0x1F) or frame[at + 7]:
            return None
        return _refuses_udp(frame, at + (frame[at] & 15) * 4, _DHCP_CLIENT)

    def _refuses_ipv6(self, frame: bytes, at: int, port: str) -> str | None:
        if len(frame) < at + 40 or frame[at] >> 4 != 6:
            return MALFORMED
        source = frame[at + 8 : at + 24]
        owner = self._owners.get(source)
        if owner is not None:
            if owner != port:
                return SPOOFED_ADDRESS
            self.used.add(source)
        found = _skip_extensions(frame, frame[at + 6], at + 40)
        if found is None:
            return MALFORMED
        kind, at = found
        if kind == ICMPV6:
            return self._refuses_icmpv6(frame, at, source, port)
        return _refuses_udp(frame, at, _DHCPV6_CLIENT) if kind == UDP else None

    def _refuses_icmpv6(self, frame: bytes, at: int, source: bytes, port: str) -> str | None:
        if len(frame) <= at:
            return MALFORMED
        kind = frame[at]
        if kind in (_ROUTER_ADVERTISEMENT, _REDIRECT):
            return ROUTER
        # A solicitation without a source claims its target (RFC 4862, duplicate address detection).
        if kind == _ADVERTISEMENT or (kind == _SOLICITATION and source == _NO_ADDRESS[1]):
            if len(frame) < at + 24:
                return MALFORMED
            return self._refuses_claim(frame[at + 8 : at + 24], port)
        return None

    def _refuses_claim(self, address: bytes, port: str) -> str | None:
        owner = self._owners.get(address)
        if owner == port:
            self.used.add(address)
        return None if owner in (None, port) else SPOOFED_NEIGHBOR


def _refuses_udp(frame: bytes, at: int, client: bytes) -> str | None:
    if len(frame) < at + 4:
        return MALFORMED
    return DHCP_ANSWER if frame[at + 2 : at + 4] == client else None


def skip_tags(frame: bytes) -> tuple[bytes, int]:
    """Return the type of a frame behind the VLAN tags, and the offset of the payload.

    With more than four tags the type is still a tag's.
    """
    kind, at = frame[12:14], HEADER_BYTES
    for _ in range(_MOST_TAGS):
        if kind not in TAGS:
            break
        kind, at = frame[at + 2 : at + 4], at + TAG_BYTES
    return kind, at


def _skip_extensions(frame: bytes, kind: int, at: int) -> tuple[int, int] | None:
    """Return the upper protocol of an IPv6 packet and the offset of this protocol; None: the headers are cut
    off.

    Later fragments of a packet have no protocol (59).
    """
    for _ in range(_MOST_EXTENSIONS):
        if kind not in _EXTENSIONS:
            return kind, at
        if len(frame) < at + 8:
            return None
        if kind == _FRAGMENT and (frame[at + 2] or frame[at + 3] & 0xF8):
            return _NO_NEXT_HEADER, at
        size = 8 if kind == _FRAGMENT else (frame[at + 1] + 1) * 8
        if kind == _AUTHENTICATION:
            size = (frame[at + 1] + 2) * 4
        kind, at = frame[at], at + size
    return None
