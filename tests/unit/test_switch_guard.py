"""Frames that a hostile machine must not send to its neighbors."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bough.networks.switch.guard import Guard
from bough.networks.switch.packets import link_local
from tests.unit.switch_peers import (
    ARP,
    BROADCAST,
    IPV4,
    IPV6,
    SWITCH,
    SWITCH_MAC,
    Peer,
    Segment,
    arp,
    ipv4,
    ipv6,
    udp,
)

FREE = socket.inet_aton("10.9.0.200")  # an address that no machine owns: a virtual address
FREE6 = socket.inet_pton(socket.AF_INET6, "fd00:9::200")
NOTHING, NOTHING6 = bytes(4), bytes(16)
ALL = socket.inet_pton(socket.AF_INET6, "ff02::1")
SWITCH_IP = socket.inet_aton(SWITCH)
UDP, ICMPV6 = 17, 58


def neighbor(kind: int, target: bytes) -> bytes:
    return bytes((kind, 0)) + bytes(6) + target


def allowed(web: Peer, db: Peer) -> list[bytes]:
    return [
        web.frame(db.mac, IPV4, ipv4(web.ipv4, db.ipv4)),
        web.frame(db.mac, IPV4, ipv4(FREE, db.ipv4)),
        web.frame(BROADCAST, IPV4, ipv4(NOTHING, b"\xff" * 4, UDP, udp(68, 69))),
        web.frame(db.mac, IPV4, ipv4(web.ipv4, db.ipv4, UDP, udp(53, 40000, b"a resolver of its own"))),
        web.frame(BROADCAST, ARP, arp(1, web.mac, web.ipv4, db.ipv4)),
        web.frame(BROADCAST, ARP, arp(1, web.mac, NOTHING, web.ipv4)),
        web.frame(BROADCAST, ARP, arp(2, web.mac, FREE, FREE)),
        web.frame(db.mac, IPV6, ipv6(web.ipv6, db.ipv6, 6, bytes(20))),
        web.frame(db.mac, IPV6, ipv6(link_local(web.mac), ALL, ICMPV6, neighbor(135, db.ipv6))),
        web.frame(db.mac, IPV6, ipv6(NOTHING6, ALL, ICMPV6, neighbor(135, web.ipv6))),
        web.frame(db.mac, IPV6, ipv6(web.ipv6, db.ipv6, ICMPV6, neighbor(136, web.ipv6))),
        web.frame(db.mac, IPV6, ipv6(FREE6, db.ipv6, ICMPV6, neighbor(136, FREE6))),
        web.frame(
            db.mac, IPV6, ipv6(link_local(web.mac), ALL, 0, b"\x3a\0" + bytes(6) + b"\x8f" + bytes(23))
        ),
        web.frame(db.mac, IPV6, ipv6(web.ipv6, db.ipv6, 44, b"\x11\0\x05\xa8" + bytes(4) + bytes(40))),
        web.frame(BROADCAST, b"\x80\x35", bytes(28)),  # RARP, which QEMU itself may send
        web.frame(BROADCAST, b"\x00\x26", bytes(38)),  # a length: STP
    ]


def refused(web: Peer, db: Peer) -> list[tuple[str, bytes]]:
    answer, answer6 = udp(67, 68, bytes(240)), udp(547, 546, bytes(8))
    nested = b"\x3c\0" + bytes(6) + b"\x2b\0" + bytes(6) + b"\x3a\0" + bytes(6)
    first_part = b"\x3a\0\0\x01" + bytes(4)
    return [
        ("spoofed_address", web.frame(db.mac, IPV4, ipv4(db.ipv4, db.ipv4))),
        ("spoofed_address", web.frame(db.mac, IPV4, ipv4(SWITCH_IP, db.ipv4, UDP, udp(53, 40000)))),
        ("spoofed_address", web.frame(db.mac, IPV6, ipv6(db.ipv6, web.ipv6, 6, bytes(20)))),
        ("spoofed_address", web.frame(db.mac, IPV6, ipv6(link_local(db.mac), ALL, 6, bytes(20)))),
        ("spoofed_address", web.frame(db.mac, IPV6, ipv6(link_local(SWITCH_MAC), ALL, 6, bytes(20)))),
        ("spoofed_arp", web.frame(BROADCAST, ARP, arp(1, web.mac, db.ipv4, db.ipv4))),
        ("spoofed_arp", web.frame(BROADCAST, ARP, arp(2, web.mac, db.ipv4, web.ipv4))),
        ("spoofed_arp", web.frame(BROADCAST, ARP, arp(2, db.mac, web.ipv4, web.ipv4))),
        ("spoofed_arp", web.frame(BROADCAST, ARP, arp(2, web.mac, SWITCH_IP, web.ipv4))),
        ("spoofed_arp", web.frame(BROADCAST, ARP, arp(1, web.mac, NOTHING, db.ipv4))),
        ("dhcp_answer", web.frame(db.mac, IPV4, ipv4(web.ipv4, b"\xff" * 4, UDP, answer))),
        ("dhcp_answer", web.frame(db.mac, IPV4, ipv4(web.ipv4, b"\xff" * 4, UDP, udp(1234, 68)))),
        ("dhcp_answer", web.frame(db.mac, IPV6, ipv6(web.ipv6, ALL, UDP, answer6))),
        ("dhcp_answer", web.frame(db.mac, IPV6, ipv6(web.ipv6, ALL, 60, b"\x11\0" + bytes(6) + answer6))),
        ("router_advertisement", web.frame(BROADCAST, IPV6, ipv6(web.ipv6, ALL, ICMPV6, neighbor(134, ALL)))),
        ("router_advertisement", web.frame(BROADCAST, IPV6, ipv6(web.ipv6, ALL, ICMPV6, neighbor(137, ALL)))),
        ("router_advertisement", web.frame(BROADCAST, IPV6, ipv6(web.ipv6, ALL, 60, nested + b"\x86"))),
        (
            "router_advertisement",
            web.frame(BROADCAST, IPV6, ipv6(web.ipv6, ALL, 44, first_part + neighbor(134, ALL))),
        ),
        ("spoofed_neighbor", web.frame(BROADCAST, IPV6, ipv6(web.ipv6, ALL, ICMPV6, neighbor(136, db.ipv6)))),
        ("spoofed_neighbor", web.frame(BROADCAST, IPV6, ipv6(NOTHING6, ALL, ICMPV6, neighbor(135, db.ipv6)))),
        ("malformed", web.frame(BROADCAST, ARP, arp(2, web.mac, web.ipv4, web.ipv4)[:27])),
        ("malformed", web.frame(BROADCAST, ARP, b"\0\x06" + arp(2, web.mac, db.ipv4, web.ipv4)[2:])),
        ("malformed", web.frame(db.mac, IPV4, ipv4(web.ipv4, db.ipv4)[:19])),
        ("malformed", web.frame(db.mac, IPV4, b"\x44" + ipv4(web.ipv4, db.ipv4)[1:])),
        ("malformed", web.frame(db.mac, IPV4, ipv4(web.ipv4, db.ipv4, UDP, b"\0\x43\0"))),
        ("malformed", web.frame(db.mac, IPV4, b"\x4f" + ipv4(web.ipv4, db.ipv4, UDP, answer[:30])[1:])),
        ("malformed", web.frame(db.mac, IPV6, ipv6(web.ipv6, ALL, UDP, b"")[:39])),
        ("malformed", web.frame(db.mac, IPV6, ipv6(web.ipv6, ALL, ICMPV6, b""))),
        ("malformed", web.frame(db.mac, IPV6, ipv6(web.ipv6, ALL, 44, first_part))),
        ("malformed", web.frame(db.mac, IPV6, ipv6(web.ipv6, ALL, 60, (b"\x3c\0" + bytes(6)) * 20))),
    ]


@pytest.fixture
def segment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Segment, Peer, Peer]:
    monkeypatch.chdir(tmp_path)
    web, db = Peer(2, "web"), Peer(3, "db")
    made = Segment()
    made.join(web, db)
    return made, web, db


def test_frames_of_an_honest_machine_pass(segment: tuple[Segment, Peer, Peer]) -> None:
    made, web, db = segment
    for frame in allowed(web, db):
        web.send(frame)
        made.step()
        assert db.received() == [frame], (frame.hex(), made.dropped(web))
    assert made.dropped(web) == {}


@pytest.mark.parametrize("tags", [b"", b"\x81\x00\0\0", b"\x81\x00\0\x0a", b"\x88\xa8\0\0\x81\x00\0\0"])
def test_frames_that_speak_for_others_are_refused(segment: tuple[Segment, Peer, Peer], tags: bytes) -> None:
    made, web, db = segment
    for why, frame in refused(web, db):
        before = dict(made.dropped(web))
        web.send(frame[:12] + tags + frame[12:])
        made.step()
        assert db.received() == [], (why, frame.hex())
        counts = made.dropped(web)
        assert {name: n for name, n in counts.items() if n != before.get(name, 0)}.keys() == {why}, (
            frame.hex()
        )


def test_more_tags_than_can_be_checked_are_refused(segment: tuple[Segment, Peer, Peer]) -> None:
    made, web, db = segment
    frame = web.frame(BROADCAST, ARP, arp(2, web.mac, db.ipv4, web.ipv4))
    for count in range(1, 12):
        web.send(frame[:12] + b"\x81\x00\0\0" * count + frame[12:])
        web.send(frame[:12] + b"\x81\x00\0\0" * count + b"\x81")
        made.step()
    assert db.received() == []


def test_an_address_without_owner_may_move(segment: tuple[Segment, Peer, Peer]) -> None:
    made, web, db = segment
    for holder, other in ((web, db), (db, web)):
        holder.send(holder.frame(BROADCAST, ARP, arp(2, holder.mac, FREE, FREE)))
        made.step()
        assert len(other.received()) == 1


@given(st.binary(max_size=200), st.sampled_from([b"", IPV4, IPV6, ARP, b"\x81\x00\0\0" + IPV6]))
def test_no_bytes_break_the_guard(body: bytes, kind: bytes) -> None:
    Guard({bytes(4): "a", bytes(16): "b"}).refuses(bytes(12) + kind + body, "c")
