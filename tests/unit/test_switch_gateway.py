"""The switch as gateway: which frames leave and enter a network. A socket stands for the uplink process."""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from dnslib import DNSRecord
from hypothesis import given
from hypothesis import strategies as st

from bough.networks import uplink_dns
from bough.networks.frame_stream import Frames, split_frames
from bough.networks.switch.gateway import Gateway
from bough.networks.switch.link_fault import DROP, Arc, LinkFault, Words
from bough.networks.switch.packets import link_local
from bough.networks.switch.settings import Member
from bough.networks.uplink_filter import Uplink
from tests.unit.switch_peers import (
    ARP,
    BROADCAST,
    IPV4,
    IPV6,
    SETTINGS,
    SWITCH,
    SWITCH_MAC,
    Peer,
    Segment,
    arp,
    ipv4,
    ipv6,
    udp,
)

OUTSIDE = socket.inet_aton("192.0.2.9")
SWITCH_IP = socket.inet_aton(SWITCH)


class Lan:
    """A machine that reaches the outside through the network, and another one that does not."""

    def __init__(self) -> None:
        self.segment = Segment()
        self.web, self.db = Peer(2, "web", gateway=True), Peer(3, "db")
        self.segment.join(self.web, self.db)
        self.outside = self.connect()
        self.frames = Frames()

    def connect(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        self.segment.fabric.connect("m2-1", 77, theirs)
        ours.setblocking(False)
        return ours

    def leaving(self, *frames: bytes, sender: Peer | None = None) -> list[bytes]:
        """Send frames of a machine. Return those that reach the outside."""
        for frame in frames:
            (sender or self.web).send(frame)
        self.segment.step()
        try:
            return split_frames(self.frames.feed(self.outside.recv(1 << 20)))
        except BlockingIOError:
            return []

    def entering(self, frame: bytes) -> list[bytes]:
        """Send a frame from outside. Return the frames that the machine gets."""
        self.outside.send(len(frame).to_bytes(4, "big") + frame)
        self.segment.step()
        return self.web.received()

    def out(self, to: bytes = OUTSIDE, source: bytes | None = None) -> bytes:
        return self.web.frame(SWITCH_MAC, IPV4, ipv4(source or self.web.ipv4, to))


@pytest.fixture
def lan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lan]:
    monkeypatch.chdir(tmp_path)
    made = Lan()
    yield made
    made.segment.fabric.close()


def test_frames_leave_and_enter(lan: Lan) -> None:
    assert lan.leaving(lan.out()) == [lan.out()]
    answer = ipv4(OUTSIDE, lan.web.ipv4)
    # passt may name other Ethernet addresses.
    assert lan.entering(bytes(12) + IPV4 + answer) == [lan.web.mac + SWITCH_MAC + IPV4 + answer]
    assert lan.db.received() == []
    assert [one["uplink"] for one in lan.segment.fabric.describe()] == [77, None]


@pytest.mark.parametrize(
    "to",
    [
        "127.0.0.1", "127.8.8.8", "0.0.0.0", "0.1.2.3", "169.254.169.254", "224.0.0.251", "255.255.255.255",
        SWITCH, "10.9.0.2", "10.9.0.3", "10.9.0.77", "10.9.0.0", "10.9.0.255",
    ],
)  # fmt: skip
def test_a_gateway_does_not_forward(lan: Lan, to: str) -> None:
    assert lan.leaving(lan.out(socket.inet_aton(to))) == []
    assert lan.db.received() == []


def test_only_the_machines_own_frames_leave(lan: Lan) -> None:
    web, db = lan.web, lan.db
    foreign = [
        lan.out(source=db.ipv4),
        lan.out(source=socket.inet_aton("10.9.0.77")),
        lan.out(source=OUTSIDE),
        web.frame(BROADCAST, IPV4, ipv4(web.ipv4, OUTSIDE)),
        web.frame(db.mac, IPV4, ipv4(web.ipv4, OUTSIDE)),
        web.frame(SWITCH_MAC, b"\x81\x00", b"\0\5" + IPV4 + ipv4(web.ipv4, OUTSIDE)),
        web.frame(SWITCH_MAC, ARP, arp(1, web.mac, web.ipv4, OUTSIDE)),
        web.frame(SWITCH_MAC, IPV6, ipv6(web.ipv6, web.ipv6, 17, udp(1, 2))),
        web.frame(SWITCH_MAC, b"\x88\xb5", b"x"),
        web.frame(SWITCH_MAC, IPV4, ipv4(web.ipv4, OUTSIDE)[:19]),
    ]
    assert lan.leaving(*foreign) == []
    assert lan.leaving(db.frame(SWITCH_MAC, IPV4, ipv4(db.ipv4, OUTSIDE)), sender=db) == []


def test_what_may_not_enter(lan: Lan) -> None:
    web, db = lan.web, lan.db
    for kind, packet in (
        (IPV4, ipv4(OUTSIDE, db.ipv4)),
        (IPV4, ipv4(OUTSIDE, socket.inet_aton("255.255.255.255"))),
        (IPV4, ipv4(db.ipv4, web.ipv4)),
        (IPV4, ipv4(OUTSIDE, web.ipv4)[:19]),
        (ARP, arp(2, SWITCH_MAC, SWITCH_IP, web.ipv4, web.mac)),
        (IPV6, ipv6(web.ipv6, web.ipv6, 58, b"\x86" + bytes(20))),
    ):
        assert lan.entering(web.mac + SWITCH_MAC + kind + packet) == []
    assert lan.entering(b"") == []
    assert lan.db.received() == []


@given(st.binary(max_size=80))
def test_any_bytes_from_outside(data: bytes) -> None:
    addresses = (b"\x0a\x09\0\2", bytes(16))
    entering = Gateway(SETTINGS).enter(
        data, Member("web", b"\x52" * 6, addresses, gateway=True, gateway6=True)
    )
    assert entering is None or entering[12:] == data[12:]


def test_ipv6_leaves_and_enters_if_the_host_has_it(lan: Lan) -> None:
    web, outside = lan.web, socket.inet_pton(socket.AF_INET6, "2001:db8::9")
    there = web.frame(SWITCH_MAC, IPV6, ipv6(web.ipv6, outside, 17, udp(7, 7)))
    back = bytes(12) + IPV6 + ipv6(outside, web.ipv6, 17, udp(7, 7))
    assert lan.leaving(there) == []
    assert lan.entering(back) == []
    lan.segment.fabric.attach(replace(web.member, gateway6=True))
    assert lan.leaving(there) == [there]
    assert lan.entering(back) == [web.mac + SWITCH_MAC + back[12:]]
    for to in (
        "::",
        "::1",
        "::127.0.0.1",
        "::ffff:127.0.0.1",
        "fe80::1",
        "ff02::1",
        "fd00:9::3",
        "fd00:9::77",
    ):
        packet = ipv6(web.ipv6, socket.inet_pton(socket.AF_INET6, to), 17, udp(7, 7))
        assert lan.leaving(web.frame(SWITCH_MAC, IPV6, packet)) == []
    other = ipv6(socket.inet_pton(socket.AF_INET6, "fd00:9::77"), outside, 17, udp(7, 7))
    assert lan.leaving(web.frame(SWITCH_MAC, IPV6, other)) == []
    ends = ((web.ipv6, lan.db.ipv6), (lan.db.ipv6, web.ipv6), (link_local(b"\2" * 6), web.ipv6))
    for source, target in ends:
        assert lan.entering(bytes(12) + IPV6 + ipv6(source, target, 58, b"\x86" + bytes(20))) == []
    assert lan.db.received() == []


def test_a_guest_finds_the_gateway_by_ipv6(lan: Lan) -> None:
    web = lan.web
    gateway = link_local(SWITCH_MAC)
    group = b"\x33\x33\xff" + gateway[13:]
    question = b"\x87" + bytes(7) + gateway + b"\1\1" + web.mac
    asks = web.frame(group, IPV6, ipv6(web.ipv6, gateway, 58, question))
    web.send(asks)
    lan.segment.step()
    assert web.received() == []  # the question is for the other machines
    lan.db.received()
    for advertised, count in ((False, 1), (True, 2)):
        lan.segment.fabric.attach(replace(web.member, gateway6=True, advertised=advertised))
        web.send(asks)
        lan.segment.step()
        answers = [frame[54:] for frame in web.received()]
        assert [answer[0] for answer in answers] == [136, 134][:count]
        assert answers[0][4:24] == b"\xe0\0\0\0" + gateway
        assert lan.db.received() == []
    assert answers[1][6:8] == b"\xff\xff"  # the lifetime as a router


def test_an_uplink_that_ends_leaves_the_machine_alone(lan: Lan) -> None:
    lan.outside.close()
    lan.segment.step()
    lan.web.send(lan.out())
    lan.segment.step()
    assert lan.segment.dropped(lan.web) == {"no_uplink": 1}
    lan.outside = lan.connect()
    assert len(lan.leaving(lan.out())) == 1


def test_an_uplink_that_sends_nonsense_is_closed(lan: Lan) -> None:
    lan.outside.send(b"\xff" * 100)
    lan.segment.step()
    assert [one["uplink"] for one in lan.segment.fabric.describe()] == [None, None]


def test_a_port_without_a_way_out_has_no_uplink(lan: Lan) -> None:
    one, _ = socket.socketpair()
    for port in ("m3-1", "m9-1"):
        with pytest.raises(ValueError, match="does not lead to the outside"):
            lan.segment.fabric.connect(port, 7, one)
    lan.web.member = Peer(2, "web").member
    lan.segment.fabric.attach(lan.web.member)  # the machine has another way out now
    assert lan.outside.recv(10) == b""


def test_queues_to_and_from_the_outside_are_bounded(lan: Lan) -> None:
    big = lan.web.frame(SWITCH_MAC, IPV4, ipv4(lan.web.ipv4, OUTSIDE, body=bytes(1400)))
    for _ in range(3000):
        lan.web.send(big)
        lan.segment.step()
    assert lan.segment.dropped(lan.web)["queue_full"]
    # A machine that does not read makes the outside wait: no frame is lost.
    answer = bytes(12) + IPV4 + ipv4(OUTSIDE, lan.web.ipv4, body=bytes(1400))
    framed = (len(answer)).to_bytes(4, "big") + answer
    sent, rest, got = 0, b"", 0
    try:
        while sent < 3000:
            rest = rest[lan.outside.send(rest or framed) :] if rest else framed[lan.outside.send(framed) :]
            sent += not rest
            lan.segment.step()
    except BlockingIOError:
        pass
    assert 100 < sent < 3000
    while received := len(lan.web.received()):
        got += received
        lan.segment.step()
    assert got >= sent


def test_a_hold_holds_the_outside(lan: Lan) -> None:
    lan.segment.fabric.hold(5)
    answer = bytes(12) + IPV4 + ipv4(OUTSIDE, lan.web.ipv4)
    assert lan.entering(answer) == []
    lan.segment.fabric.release()
    lan.segment.step()
    assert len(lan.web.received()) == 1


def test_a_fault_about_all_others_is_about_the_outside(lan: Lan) -> None:
    own, db = frozenset(("m2-1",)), frozenset(("m3-1",))
    alone = LinkFault("ab", 0, (Arc(own, None), Arc(None, own)), Words(cut=DROP))
    lan.segment.fabric.set_faults([alone])
    assert lan.leaving(lan.out()) == []
    assert lan.entering(bytes(12) + IPV4 + ipv4(OUTSIDE, lan.web.ipv4)) == []
    assert lan.segment.dropped(lan.web) == {"fault": 2}
    pair = LinkFault("cd", 0, (Arc(own, db), Arc(db, own)), Words(cut=DROP))
    lan.segment.fabric.set_faults([pair])
    assert len(lan.leaving(lan.out())) == 1
    late = LinkFault("ef", 0, (Arc(own, None),), Words(delay=0.1))
    lan.segment.fabric.set_faults([late])
    assert lan.leaving(lan.out()) == []
    lan.segment.wait(0.2)
    assert len(lan.leaving()) == 1


def question(lan: Lan, name: str) -> bytes:
    query = udp(40000, 53, DNSRecord.question(name).pack())
    return lan.web.frame(SWITCH_MAC, IPV4, ipv4(lan.web.ipv4, SWITCH_IP, 17, query))


def test_names_of_the_network_are_not_asked_outside(lan: Lan) -> None:
    for name, code in (("db", 0), ("nobody", 3), ("nobody.back", 3), ("77.0.9.10.in-addr.arpa", 3)):
        assert lan.leaving(question(lan, name)) == []
        (frame,) = lan.web.received()
        assert DNSRecord.parse(frame[42:]).header.rcode == code
    assert len(lan.leaving(question(lan, "example.org"))) == 1


def test_other_names_are_answered_by_the_hosts_resolvers(lan: Lan, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as resolver:
        resolver.bind(("127.0.0.1", 0))
        place = (socket.AF_INET, resolver.getsockname())
        monkeypatch.setattr(uplink_dns, "read_resolvers", lambda: iter([place]))
        lan.outside.setblocking(True)
        uplink = Uplink(lan.outside, lambda: socket.socketpair()[0], SWITCH)
        thread = threading.Thread(target=uplink.run)
        thread.start()
        lan.web.send(question(lan, "example.org"))
        lan.segment.step()
        query, peer = resolver.recvfrom(4096)
        resolver.sendto(query[:2] + b"\x81\x80" + query[4:] + b"the answer", peer)
        while not select.select([lan.web.socket], [], [], 0.01)[0]:
            lan.segment.step()
        (frame,) = lan.web.received()
        lan.segment.fabric.close()
        thread.join(10)
    assert frame[:14] == lan.web.mac + SWITCH_MAC + IPV4
    assert frame[26:34] == SWITCH_IP + lan.web.ipv4
    assert frame.endswith(b"the answer")
