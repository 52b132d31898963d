"""The switch of a network, with datagram sockets as machines."""

from __future__ import annotations

import os
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from bough.networks.switch.port import NO_MACHINE, QUEUE_FULL, TOO_LARGE
from bough.networks.switch.settings import Member, Settings
from tests.unit.switch_peers import BROADCAST, IPV4, SETTINGS, SWITCH_MAC, Peer, Segment, ipv4

KIND = b"\x88\xb5"  # for local experiments (IEEE 802)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def segment() -> Segment:
    return Segment()


def three(segment: Segment) -> tuple[Peer, Peer, Peer]:
    peers = (Peer(2, "web"), Peer(3, "db"), Peer(4, "cache"))
    segment.join(*peers)
    return peers


def test_a_frame_reaches_only_its_destination(segment: Segment) -> None:
    web, db, cache = three(segment)
    frame = web.frame(db.mac, KIND, b"hello")
    web.send(frame)
    segment.step()
    assert db.received() == [frame]
    assert cache.received() == web.received() == []


@pytest.mark.parametrize("to", [BROADCAST, bytes.fromhex("01005e000001"), bytes.fromhex("525400eeeeee")])
def test_broadcast_multicast_and_unknown_addresses_reach_all_others(segment: Segment, to: bytes) -> None:
    web, db, cache = three(segment)
    frame = web.frame(to, KIND, b"hello")
    web.send(frame)
    segment.step()
    assert db.received() == cache.received() == [frame]
    assert web.received() == []


def test_frames_with_a_foreign_source_are_dropped(segment: Segment) -> None:
    web, db, cache = three(segment)
    for source in (db.mac, cache.mac, SWITCH_MAC, BROADCAST, bytes(6), bytes.fromhex("525400eeeeee")):
        web.send(BROADCAST + source + KIND + b"hello")
    segment.step()
    assert db.received() == cache.received() == []
    assert segment.dropped(web) == {"spoofed_mac": 6}
    # Nothing was learned from them: the owner still gets its frames.
    cache.send(cache.frame(db.mac, KIND))
    segment.step()
    assert len(db.received()) == 1


def test_a_bridge_may_have_some_more_addresses(segment: Segment) -> None:
    bridge, db = Peer(2, "bridge", learns=2), Peer(3, "db")
    segment.join(bridge, db)
    inner = [bytes.fromhex(f"0200000000{number:02x}") for number in range(3)]
    for mac in (*inner, db.mac):
        bridge.send(db.mac + mac + KIND)
        segment.step()
    assert [frame[6:12] for frame in db.received()] == inner[:2]
    assert segment.dropped(bridge) == {"spoofed_mac": 2}
    db.send(db.frame(inner[1], KIND))
    segment.step()
    assert len(bridge.received()) == 1


def test_runts_and_oversized_frames_are_dropped(segment: Segment) -> None:
    web, db, _ = three(segment)
    for size in (0, 1, 13):
        web.send(web.frame(db.mac, KIND)[:size])
    web.send(web.frame(db.mac, KIND, bytes(1501)))
    web.send(web.frame(db.mac, KIND, bytes(100_000)))
    segment.step()
    assert db.received() == []
    assert segment.dropped(web) == {"runt": 3, TOO_LARGE: 2}
    web.send(web.frame(db.mac, KIND, bytes(1500)))
    segment.step()
    assert len(db.received()[0]) == 1514


def test_vlan_tags_pass_and_do_not_count_for_the_size(segment: Segment) -> None:
    web, db, _ = three(segment)
    tags = b"\x81\x00\x00\x0a"
    web.send(db.mac + web.mac + tags + KIND + bytes(1500))
    web.send(db.mac + web.mac + b"\x88\xa8\x00\x05" + tags + KIND + bytes(1500))
    web.send(db.mac + web.mac + tags + KIND + bytes(1501))
    segment.step()
    assert [len(frame) for frame in db.received()] == [1518, 1522]
    assert segment.dropped(web) == {TOO_LARGE: 1}


def test_large_frames_pass_if_the_network_has_a_large_mtu() -> None:
    segment = Segment(replace(SETTINGS, mtu=65520))
    web, db, _ = three(segment)
    for size in (65520, 65521):
        web.send(web.frame(db.mac, KIND, bytes(size)))
        segment.step()
    assert [len(frame) for frame in db.received()] == [65534]


def test_a_machine_that_does_not_read_fills_only_its_own_queue() -> None:
    segment = Segment(replace(SETTINGS, queue_bytes=20_000))
    web, db, cache = three(segment)
    for number in range(100):
        web.send(web.frame(BROADCAST, KIND, number.to_bytes(2, "big") + bytes(998)))
        segment.step()
        assert len(cache.received()) == 1
    port = next(port for port in segment.fabric.ports() if port.name == db.port)
    told = port.describe()
    assert told["queued_bytes"] <= 20_000
    assert port.dropped[QUEUE_FULL] == 100 - told["sent_frames"] - told["queued_frames"] > 0
    # The kernel's queue is about ten datagrams: the rest of what db gets has waited here, in order.
    seen = []
    for _ in range(50):
        seen += [int.from_bytes(frame[14:16], "big") for frame in db.received()]
        segment.step()
    assert seen == list(range(told["sent_frames"] + told["queued_frames"]))
    assert port.describe()["queued_frames"] == 0
    assert segment.poll.poll(0) == []  # nothing to do, so no processor time


def test_small_frames_count_for_the_memory_that_they_take() -> None:
    segment = Segment(replace(SETTINGS, queue_bytes=10_000))
    web, db, _ = three(segment)
    for _ in range(500):
        web.send(web.frame(db.mac, KIND))
        segment.step()
    port = next(port for port in segment.fabric.ports() if port.name == db.port)
    assert port.describe()["queued_frames"] < 100


def test_a_flood_leaves_neighbors_their_turns(segment: Segment) -> None:
    web, db, cache = three(segment)
    for _ in range(10):
        web.send(web.frame(BROADCAST, KIND))
    db.send(db.frame(cache.mac, KIND, b"through"))
    ready = segment.poll.poll(0)
    assert len(ready) == 2  # each has its turn in this round, however much the other has
    for number, _ in ready:
        act = segment.fabric.owner_of(number)
        assert act is not None
        act()
    assert any(frame.endswith(b"through") for frame in cache.received())


def test_a_turn_is_bounded(segment: Segment) -> None:
    web, _, _ = three(segment)
    port = next(port for port in segment.fabric.ports() if port.name == web.port)
    for _ in range(11):
        web.send(web.frame(BROADCAST, KIND, bytes(10)))
    segment.fabric.receive(port)
    # Each broadcast to two others is three pieces of work of 32.
    assert port.received_frames == 11


def test_the_next_qemu_of_a_machine_gets_the_frames(segment: Segment) -> None:
    web, db, _ = three(segment)
    web.send(web.frame(db.mac, KIND, b"1"))
    segment.step()
    db.socket.close()
    web.send(web.frame(db.mac, KIND, b"2"))
    segment.step()
    assert segment.dropped(db) == {NO_MACHINE: 1}
    db.bind()
    db.send(db.frame(web.mac, KIND))
    port = next(port for port in segment.fabric.ports() if port.name == db.port)
    port._looked = 0.0  # instead of a wait of 50 ms
    web.send(web.frame(db.mac, KIND, b"3"))
    segment.step()
    assert [frame[-1:] for frame in db.received()] == [b"3"]


def test_a_queue_ends_with_its_qemu(segment: Segment) -> None:
    web, db, _ = three(segment)
    for _ in range(30):
        web.send(web.frame(db.mac, KIND, b"old"))
        segment.step()
    db.socket.close()
    db.bind()
    segment.step()
    port = next(port for port in segment.fabric.ports() if port.name == db.port)
    port._looked = 0.0
    web.send(web.frame(db.mac, KIND, b"new"))
    segment.step()
    assert [frame[-3:] for frame in db.received()] == [b"new"]
    assert port.describe()["queued_bytes"] == 0


def test_a_new_switch_finds_the_sockets_again(segment: Segment) -> None:
    web, db, _ = three(segment)
    second = Segment()
    second.join(web, db)
    web.send(web.frame(db.mac, KIND, b"again"))
    second.step()
    segment.step()
    assert [frame[-5:] for frame in db.received()] == [b"again"]


@pytest.mark.parametrize("kind", ["link", "pipe", "stream", "file"])
def test_a_hostile_qemu_cannot_lead_frames_elsewhere(segment: Segment, kind: str) -> None:
    web, db, cache = three(segment)
    place = db.directory / "nic.sock"
    place.unlink()
    if kind == "link":
        place.symlink_to(Path("..", cache.port, "nic.sock"))
    elif kind == "pipe":
        os.mkfifo(place)
    elif kind == "stream":
        stream = socket.socket(socket.AF_UNIX)
        stream.bind(str(place))
        stream.listen()
    else:
        place.write_bytes(b"")
    web.send(web.frame(db.mac, KIND))
    segment.step()
    assert cache.received() == []
    assert segment.dropped(db) == {NO_MACHINE: 1}


def test_two_machines_cannot_have_one_address(segment: Segment) -> None:
    web, db, _ = three(segment)
    with pytest.raises(ValueError, match="MAC address"):
        segment.fabric.attach(replace(db.member, port="m9-1", addresses=()))
    with pytest.raises(ValueError, match="has an address of port"):
        segment.fabric.attach(replace(db.member, port="m9-1", mac=bytes.fromhex("525400000009")))
    with pytest.raises(ValueError, match="address of the switch"):
        segment.fabric.attach(Member("m9-1", SWITCH_MAC))
    # A machine may get new settings, and keeps its counters.
    web.send(web.frame(db.mac, KIND))
    segment.step()
    segment.fabric.attach(replace(web.member, names=("front",)))
    told = next(one for one in segment.fabric.describe() if one["port"] == web.port)
    assert told["received_frames"] == 1


def test_a_detached_machine_is_cut_off(segment: Segment) -> None:
    web, db, _ = three(segment)
    assert segment.fabric.detach(db.port)
    assert not segment.fabric.detach(db.port)
    assert not (db.directory / "switch.sock").exists()
    web.send(web.frame(BROADCAST, KIND))
    segment.step()
    assert db.received() == []
    other = Peer(3, "other")  # its addresses are free again
    segment.join(other)


def test_a_missing_directory_leaves_no_port(segment: Segment) -> None:
    with pytest.raises(FileNotFoundError):
        segment.fabric.attach(Member("m9-1", bytes.fromhex("525400000009")))
    assert segment.fabric.ports() == []


def test_counters(segment: Segment) -> None:
    web, db, _ = three(segment)
    web.send(web.frame(db.mac, IPV4, ipv4(web.ipv4, db.ipv4)))
    web.send(b"short")
    segment.step()
    told = {one["port"]: one for one in segment.fabric.describe()}
    assert told[web.port]["received_frames"] == 2
    assert told[web.port]["received_bytes"] == 14 + 28 + 5
    assert told[web.port]["dropped"] == {"runt": 1}
    assert told[db.port]["sent_frames"] == 1
    assert told[db.port]["sent_bytes"] == 42


@pytest.mark.parametrize(
    "change",
    [
        {"port": "../etc"},
        {"port": "A"},
        {"port": ""},
        {"mac": "01:00:5e:00:00:01"},
        {"mac": "00:00:00:00:00:00"},
        {"mac": "52:54:00"},
        {"addresses": ["10.9.0"]},
        {"names": ["x" * 300]},
        {"learns": 1000},
        {"learns": -1},
    ],
)
def test_bad_members_are_refused(change: dict[str, object]) -> None:
    good = {"port": "m9-1", "mac": "52:54:00:00:00:09", "addresses": ["10.9.0.9"], "names": ["x"]}
    Member.from_dict(good)
    with pytest.raises(ValueError):
        Member.from_dict({**good, **change})


@pytest.mark.parametrize("mtu", [0, 575, 65521])
def test_bad_mtus_are_refused(mtu: int) -> None:
    good = {"network": "back", "mac": "52:54:00:00:00:01", "address": "10.9.0.1/24", "address6": "fd00::1/64"}
    assert Settings.from_dict({**good, "mtu": 1500}).mtu == 1500
    with pytest.raises(ValueError, match="MTU"):
        Settings.from_dict({**good, "mtu": mtu})
