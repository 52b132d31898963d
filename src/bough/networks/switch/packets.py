"""Parts of the packets that the switch sends."""

from __future__ import annotations

from bough.networks.switch.guard import ICMPV6, IPV6

IPV6_BYTES = 40
#: Packets of neighbor discovery have this hop limit: no router has forwarded them.
_HOPS = b"\xff"


def checksum(data: bytes) -> int:
    """Return the checksum of IP, UDP and ICMPv6 (RFC 1071)."""
    if len(data) % 2:
        data += b"\0"
    total = sum(int.from_bytes(data[at : at + 2], "big") for at in range(0, len(data), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def link_local(mac: bytes) -> bytes:
    """Return the link-local IPv6 address of a card, derived from the MAC address (RFC 4291, appendix A)."""
    return b"\xfe\x80" + bytes(6) + bytes((mac[0] ^ 2,)) + mac[1:3] + b"\xff\xfe" + mac[3:]


def render_icmpv6(macs: tuple[bytes, bytes], ends: tuple[bytes, bytes], kind: int, body: bytes) -> bytes:
    """Return a frame of neighbor discovery.

    Args:
        macs: of the receiver and of the sender.
        ends: addresses of the sender and of the receiver.
        body: what follows type, code and checksum.
    """
    head = bytes((kind, 0))
    size = (len(head) + 2 + len(body)).to_bytes(4, "big")
    pseudo = b"".join(ends) + size + bytes((0, 0, 0, ICMPV6))
    message = head + checksum(pseudo + head + bytes(2) + body).to_bytes(2, "big") + body
    return (
        b"".join(macs) + IPV6 + b"\x60\0\0\0" + size[2:] + bytes((ICMPV6,)) + _HOPS + b"".join(ends) + message
    )
