"""ARP, DHCP and DNS of the switch, as a machine asks for them."""

from __future__ import annotations

import socket
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from dnslib import RCODE, DNSRecord
from dpkt.dhcp import DHCP
from dpkt.ethernet import Ethernet
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bough.networks.names import domains_of, names_of
from bough.networks.switch.packets import checksum, link_local
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

SWITCH_IP = socket.inet_aton(SWITCH)
ANYBODY, NOBODY = b"\xff" * 4, bytes(4)
DISCOVER, OFFER, REQUEST, ACK, NAK, RELEASE, INFORM = 1, 2, 3, 5, 6, 7, 8


class Lan:
    """A segment with two machines."""

    def __init__(self, *, uplink: bool, advertised: bool = False) -> None:
        self.segment = Segment()
        more = {"uplink": uplink, "advertised": advertised}
        self.web, self.db = Peer(2, "web", **more), Peer(3, "db", **more)
        self.segment.join(self.web, self.db)

    def ask(self, frame: bytes) -> list[bytes]:
        self.web.send(frame)
        self.segment.step()
        return self.web.received()

    def dhcp(self, kind: int, *, flags: int = 0, ciaddr: int = 0, **options: bytes) -> Any:
        """Return the answer as (frame, DHCP); None: no answer."""
        numbers = {"requested": 50, "server": 54}
        request = DHCP(xid=77, flags=flags, ciaddr=ciaddr, chaddr=self.web.mac.ljust(16, b"\0"))
        request.opts = [(53, bytes((kind,))), *((numbers[name], value) for name, value in options.items())]
        packet = ipv4(NOBODY, ANYBODY, 17, udp(68, 67, bytes(request)))
        answers = self.ask(self.web.frame(BROADCAST, IPV4, packet))
        assert self.db.received() == []  # requests are for the switch alone
        if not answers:
            return None
        (frame,) = answers
        return Ethernet(frame), DHCP(Ethernet(frame).data.data.data)

    def dns(self, name: str, kind: str = "A") -> DNSRecord:
        query = DNSRecord.question(name, kind)
        packet = ipv4(self.web.ipv4, SWITCH_IP, 17, udp(40000, 53, query.pack()))
        (frame,) = self.ask(self.web.frame(SWITCH_MAC, IPV4, packet))
        datagram = Ethernet(frame).data.data
        assert (datagram.sport, datagram.dport) == (53, 40000)
        answer = DNSRecord.parse(datagram.data)
        assert answer.header.id == query.header.id
        return answer


@pytest.fixture
def lan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lan:
    monkeypatch.chdir(tmp_path)
    return Lan(uplink=False)


@pytest.fixture
def with_uplink(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lan:
    monkeypatch.chdir(tmp_path)
    return Lan(uplink=True)


def test_the_switch_answers_arp_for_its_own_address_alone(lan: Lan) -> None:
    (answer,) = lan.ask(lan.web.frame(BROADCAST, ARP, arp(1, lan.web.mac, lan.web.ipv4, SWITCH_IP)))
    wanted = arp(2, SWITCH_MAC, SWITCH_IP, lan.web.ipv4, lan.web.mac)
    assert answer == lan.web.mac + SWITCH_MAC + ARP + wanted
    assert lan.db.received() == []
    assert lan.ask(lan.web.frame(BROADCAST, ARP, arp(1, lan.web.mac, lan.web.ipv4, lan.db.ipv4))) == []
    assert len(lan.db.received()) == 1


def test_other_frames_to_the_switch_are_dropped(lan: Lan) -> None:
    for packet in (ipv4(lan.web.ipv4, SWITCH_IP), ipv4(lan.web.ipv4, SWITCH_IP, 17, udp(1, 2, b"x"))):
        assert lan.ask(lan.web.frame(SWITCH_MAC, IPV4, packet)) == []
    assert lan.ask(lan.web.frame(SWITCH_MAC, b"\x88\xb5", b"x")) == []
    assert lan.db.received() == []


def test_dhcp_gives_the_fixed_address_for_ever(lan: Lan) -> None:
    frame, offer = lan.dhcp(DISCOVER)
    options = dict(offer.opts)
    assert options[53] == bytes((OFFER,))
    assert offer.yiaddr.to_bytes(4, "big") == lan.web.ipv4
    assert (frame.dst, frame.data.dst) == (lan.web.mac, lan.web.ipv4)
    frame, ack = lan.dhcp(REQUEST, requested=lan.web.ipv4, server=SWITCH_IP)
    options = dict(ack.opts)
    assert options[53] == bytes((ACK,))
    assert ack.xid == 77
    assert ack.yiaddr.to_bytes(4, "big") == lan.web.ipv4
    assert options[51] == b"\xff" * 4
    assert options[1] == socket.inet_aton("255.255.255.0")
    assert options[28] == socket.inet_aton("10.9.0.255")
    assert options[6] == options[54] == SWITCH_IP
    assert options[26] == (1500).to_bytes(2, "big")
    assert options[12] == b"web"
    assert options[15] == b"back"
    assert 3 not in options  # no router
    assert frame.data.sum != 0
    assert frame.data.data.sum != 0


def test_dhcp_refuses_other_addresses(lan: Lan) -> None:
    frame, nak = lan.dhcp(REQUEST, requested=lan.db.ipv4)
    assert dict(nak.opts)[53] == bytes((NAK,))
    assert nak.yiaddr == 0
    assert frame.data.dst == ANYBODY
    assert lan.dhcp(REQUEST, requested=lan.web.ipv4, server=lan.db.ipv4) is None
    assert lan.dhcp(RELEASE) is None


def test_dhcp_follows_the_flags_of_a_client(lan: Lan) -> None:
    frame, _ = lan.dhcp(DISCOVER, flags=0x8000)
    assert frame.data.dst == ANYBODY
    current = int.from_bytes(lan.web.ipv4, "big")
    frame, ack = lan.dhcp(REQUEST, ciaddr=current)
    assert dict(ack.opts)[53] == bytes((ACK,))
    assert frame.data.dst == lan.web.ipv4
    _, ack = lan.dhcp(INFORM, ciaddr=current)
    assert 51 not in dict(ack.opts)
    assert ack.yiaddr == 0


@pytest.mark.parametrize("name", ["db", "db.back", "db.shop", "DB.Back"])
def test_names(lan: Lan, name: str) -> None:
    answer = lan.dns(name)
    assert [str(rr.rdata) for rr in answer.rr] == ["10.9.0.3"]
    assert answer.header.aa == 1
    # A guest that has not set its IPv6 address is not asked there.
    assert lan.dns(name, "AAAA").rr == []
    claim = bytes((135, 0)) + bytes(6) + lan.db.ipv6
    lan.db.send(lan.db.frame(BROADCAST, IPV6, ipv6(bytes(16), lan.db.ipv6, 58, claim)))
    lan.segment.step()
    lan.web.received()
    assert [str(rr.rdata) for rr in lan.dns(name, "AAAA").rr] == ["fd00:9::3"]
    # The name is there, but has no such record.
    answer = lan.dns(name, "MX")
    assert (answer.header.rcode, answer.rr) == (RCODE.NOERROR, [])


def test_reverse_names(lan: Lan) -> None:
    for address in (lan.db.ipv4, lan.db.ipv6):
        answer = lan.dns(ip_address(address).reverse_pointer, "PTR")
        assert [str(rr.rdata) for rr in answer.rr] == ["db.back."]


@pytest.mark.parametrize("name", ["nobody", "nobody.back", "back", "9.0.9.10.in-addr.arpa"])
def test_unknown_names_of_the_network_do_not_exist(with_uplink: Lan, name: str) -> None:
    assert with_uplink.dns(name).header.rcode == RCODE.NXDOMAIN


def test_other_names_are_for_the_next_resolver_if_there_is_one(with_uplink: Lan) -> None:
    for name in ("example.org", "1.2.0.192.in-addr.arpa"):
        answer = with_uplink.dns(name)
        assert answer.header.rcode == RCODE.REFUSED
        assert answer.header.aa == 0


def test_other_names_do_not_exist_without_an_uplink(lan: Lan) -> None:
    assert lan.dns("example.org").header.rcode == RCODE.NXDOMAIN


def test_machines_share_an_alias(lan: Lan) -> None:
    for number in (5, 6):
        lan.segment.join(Peer(number, f"app-{number}", names=(f"app-{number}", "app")))
    assert {str(rr.rdata) for rr in lan.dns("app").rr} == {"10.9.0.5", "10.9.0.6"}


def test_a_long_answer_fits(lan: Lan) -> None:
    for number in range(10, 120):
        lan.segment.join(Peer(number, f"app-{number}", names=("app",)))
    answer = lan.dns("app")
    assert len(answer.pack()) <= 512
    assert len(answer.rr) > 10


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200, deadline=None)
@given(payload=st.binary(max_size=600), port=st.sampled_from([53, 67]))
def test_no_bytes_break_the_services(lan: Lan, payload: bytes, port: int) -> None:
    lan.ask(lan.web.frame(SWITCH_MAC, IPV4, ipv4(lan.web.ipv4, SWITCH_IP, 17, udp(68, port, payload))))


def test_names_of_a_machine() -> None:
    assert names_of("db", "back", domain="shop", aliases=["primary"]) == (
        "db", "db.back", "db.shop", "primary", "primary.back", "primary.shop",
    )  # fmt: skip
    assert names_of("db", "back") == ("db", "db.back")
    assert domains_of("back", domain="shop") == ("back", "shop")


# -- IPv6 router advertisements ---------------------------------------------------------------------------

ALL_ROUTERS = bytes.fromhex("333300000002")


def solicitation(source: bytes) -> bytes:
    to = socket.inet_pton(socket.AF_INET6, "ff02::2")
    return ipv6(source, to, 58, bytes((133, 0)) + bytes(6))


@pytest.mark.parametrize("is_new", [True, False])
def test_a_guest_that_asks_for_routers_gets_the_prefix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_new: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    lan = Lan(uplink=False, advertised=True)
    own = bytes(16) if is_new else link_local(lan.web.mac)
    (frame,) = lan.ask(lan.web.frame(ALL_ROUTERS, IPV6, solicitation(own)))
    assert lan.db.received() == []
    packet = Ethernet(frame).data
    assert frame[:12] == lan.web.mac + SWITCH_MAC
    assert (packet.hlim, packet.nxt, packet.src) == (255, 58, link_local(SWITCH_MAC))
    assert packet.dst == (socket.inet_pton(socket.AF_INET6, "ff02::1") if is_new else own)
    message = frame[54:]
    pseudo = packet.src + packet.dst + len(message).to_bytes(4, "big") + bytes((0, 0, 0, 58))
    assert checksum(pseudo + message) == 0
    assert (message[0], message[5], message[6:8]) == (134, 0, b"\0\0"), "the switch is no router"
    options, at = {}, 16
    while at < len(message):
        options[message[at]] = message[at : at + message[at + 1] * 8]
        at += message[at + 1] * 8
    assert at == len(message)
    assert options[1][2:] == SWITCH_MAC
    assert int.from_bytes(options[5][4:], "big") == 1500
    assert options[3][2:4] == bytes((64, 0xC0))
    assert options[3][4:12] == b"\xff" * 8
    assert options[3][16:] == socket.inet_pton(socket.AF_INET6, "fd00:9::")


def test_a_guest_with_the_agent_gets_no_prefix(lan: Lan) -> None:
    assert lan.ask(lan.web.frame(ALL_ROUTERS, IPV6, solicitation(bytes(16)))) == []


def test_other_packets_to_all_routers_are_carried(lan: Lan) -> None:
    for body in (
        solicitation(lan.web.ipv6)[:-8],
        ipv6(lan.web.ipv6, bytes(16), 58, bytes((143, 0)) + bytes(6)),
    ):
        lan.web.send(lan.web.frame(ALL_ROUTERS, IPV6, body))
        lan.segment.step()
        assert lan.web.received() == []
    assert len(lan.db.received()) == 1
