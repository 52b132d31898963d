"""Faults of links: each word, who is affected, bounds, and the same fates in each run."""

from __future__ import annotations

import itertools
import select
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from bough.networks.switch import faults as module
from bough.networks.switch.control import Control
from bough.networks.switch.fabric import Fabric
from bough.networks.switch.faults import FULL, LOST
from bough.networks.switch.link_fault import LinkFault, problems_of
from bough.networks.switch.port import QUEUE_FULL
from bough.networks.switch.program import run
from tests.unit.switch_peers import ARP, BROADCAST, SETTINGS, Peer, Segment, arp
from tests.unit.test_switch_control import Client, listen

KIND = b"\x88\xb5"


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


def fault(source: Peer | None, target: Peer | None, seed: int = 1, **words: Any) -> LinkFault:
    arc = [None if peer is None else [peer.port] for peer in (source, target)]
    return LinkFault.from_dict({"id": f"{seed:04x}", "seed": seed, "arcs": [arc], "words": words})


def send(segment: Segment, source: Peer, target: Peer, *bodies: bytes) -> None:
    for body in bodies:
        source.send(source.frame(target.mac, KIND, body))
        segment.step()


def bodies(peer: Peer) -> list[bytes]:
    return [frame[14:] for frame in peer.received()]


def numbers(count: int) -> list[bytes]:
    return [number.to_bytes(4, "big") for number in range(count)]


def survivors(segment: Segment, source: Peer, target: Peer, count: int = 400) -> list[bytes]:
    """Send that many frames one by one, and return those that arrive."""
    arrived = []
    for body in numbers(count):
        send(segment, source, target, body)
        arrived += bodies(target)
    return arrived


def test_a_delay_has_a_direction(segment: Segment) -> None:
    web, db, cache = three(segment)
    segment.fabric.set_faults([fault(web, db, delay=0.1)])
    send(segment, web, db, b"late")
    send(segment, db, web, b"back")
    send(segment, web, cache, b"aside")
    assert (bodies(web), bodies(db), bodies(cache)) == ([b"back"], [], [b"aside"])
    assert segment.fabric.wait_s() == pytest.approx(0.1)
    segment.wait(0.099)
    assert bodies(db) == []
    segment.wait(0.001)
    assert bodies(db) == [b"late"]
    assert segment.fabric.wait_s() is None


def test_all_links_of_a_machine_and_broadcasts(segment: Segment) -> None:
    web, db, cache = three(segment)
    segment.fabric.set_faults([fault(None, db, cut="drop")])
    web.send(web.frame(BROADCAST, KIND, b"all"))
    segment.step()
    assert (bodies(db), bodies(cache)) == ([], [b"all"])
    assert segment.dropped(web) == {LOST: 1}
    assert segment.fabric.describe_faults() == [{"id": "0001", "loss": 1, "waiting": 0}]


def test_the_answers_of_the_switch_are_not_affected(segment: Segment) -> None:
    web, _, _ = three(segment)
    segment.fabric.set_faults([fault(web, None, cut="drop"), fault(None, web, seed=2, cut="drop")])
    question = arp(1, web.mac, web.ipv4, socket.inet_aton("10.9.0.1"))
    web.send(web.frame(BROADCAST, ARP, question))
    segment.step()
    assert len(web.received()) == 1


def test_jitter_spreads_frames_and_keeps_their_order(segment: Segment) -> None:
    web, db, _ = three(segment)
    segment.fabric.set_faults([fault(web, db, delay=0.1, jitter=0.05)])
    arrived, times = [], []
    for number in numbers(50):
        send(segment, web, db, number)
        for step in range(200):
            if got := bodies(db):
                arrived += got
                times.append(step)
                break
            segment.wait(0.001)
    assert arrived == numbers(50)
    assert min(times) >= 50
    assert max(times) <= 151
    assert max(times) - min(times) > 60
    send(segment, web, db, *numbers(8))
    segment.wait(0.2)
    assert bodies(db) == numbers(8)


def test_loss_is_random_and_repeatable(segment: Segment) -> None:
    web, db, cache = three(segment)
    segment.fabric.set_faults([fault(web, None, loss=25)])
    first = survivors(segment, web, db)
    assert 260 < len(first) < 340
    assert segment.dropped(web) == {LOST: 400 - len(first)}
    assert survivors(segment, web, cache) != first  # each link has fates of its own
    segment.fabric.set_faults([])
    segment.fabric.set_faults([fault(web, None, loss=25)])
    assert survivors(segment, web, db) == first
    segment.fabric.set_faults([fault(web, None, seed=2, loss=25)])
    assert survivors(segment, web, db) != first


def test_the_names_decide_and_not_the_ids(segment: Segment) -> None:
    web, db, _ = three(segment)
    segment.fabric.set_faults([fault(None, None, loss=50)])
    first = survivors(segment, web, db)
    other = Segment()
    again = (Peer(7, "web"), Peer(8, "db"))
    other.join(*again)
    other.fabric.set_faults([fault(None, None, loss=50)])
    assert survivors(other, *again) == first


def test_another_fault_leaves_the_fates_of_the_first(segment: Segment) -> None:
    web, db, _ = three(segment)
    lossy = fault(web, db, loss=50)
    segment.fabric.set_faults([lossy])
    whole = survivors(segment, web, db, 100)
    segment.fabric.set_faults([])
    segment.fabric.set_faults([lossy])
    half = survivors(segment, web, db, 50)
    segment.fabric.set_faults([lossy, fault(web, db, seed=2, duplicate=0.0001)])
    rest = [
        body
        for body in numbers(100)[50:]
        if (send(segment, web, db, body), bodies(db))[1]  # type: ignore[func-returns-value]
    ]
    assert half + rest == whole


def test_correlated_losses_come_in_bursts_and_keep_their_share(segment: Segment) -> None:
    web, db, _ = three(segment)

    def runs(correlation: float) -> tuple[int, int]:
        segment.fabric.set_faults([])
        segment.fabric.set_faults([fault(web, db, loss=30, correlation=correlation)])
        there = set(survivors(segment, web, db, 1500))
        fates = [number in there for number in numbers(1500)]
        return sum(a != b for a, b in itertools.pairwise(fates)), len(there)

    (single, share), (burst, bursty) = runs(0), runs(90)
    assert burst * 3 < single
    assert abs(share - 1050) < 80
    assert abs(bursty - 1050) < 250


def test_duplicate_corrupt_and_reorder(segment: Segment) -> None:
    web, db, _ = three(segment)
    segment.fabric.set_faults([fault(web, db, duplicate=100)])
    send(segment, web, db, b"twice")
    assert bodies(db) == [b"twice"] * 2
    segment.fabric.set_faults([fault(web, db, corrupt=100)])
    send(segment, web, db, bytes(100))
    (frame,) = db.received()
    assert frame[:14] == db.mac + web.mac + KIND
    assert sum(bin(byte).count("1") for byte in frame[14:]) == 1
    segment.fabric.set_faults([fault(web, db, delay=0.1, reorder=30)])
    send(segment, web, db, *numbers(9))
    segment.wait(0.1)
    arrived = bodies(db)
    assert sorted(arrived) == numbers(9) != arrived


def test_a_rate_spaces_frames(segment: Segment) -> None:
    web, db, _ = three(segment)
    segment.fabric.set_faults([fault(web, db, rate=8000)])  # 1000 bytes per second
    send(segment, web, db, *[bytes(486)] * 4)  # 500 bytes each
    arrived = []
    for _ in range(4):
        arrived.append(len(bodies(db)))
        segment.wait(0.5)
    assert [*arrived, len(bodies(db))] == [0, 1, 1, 1, 1]


def test_two_faults_of_a_link_add_up(segment: Segment) -> None:
    web, db, _ = three(segment)
    segment.fabric.set_faults([fault(web, None, delay=0.1), fault(None, db, seed=2, duplicate=100)])
    send(segment, web, db, b"x")
    assert bodies(db) == []
    segment.wait(0.1)
    assert bodies(db) == [b"x", b"x"]


def test_held_frames_come_in_order_at_the_end(segment: Segment) -> None:
    web, db, cache = three(segment)
    held = fault(web, db, cut="hold")
    segment.fabric.set_faults([held])
    send(segment, web, db, *numbers(40))
    segment.fabric.set_faults([held, fault(web, cache, seed=2, loss=10)])  # another fault frees none
    send(segment, web, db, b"last")
    assert bodies(db) == []
    assert segment.fabric.describe_faults()[0]["waiting"] == 41
    segment.fabric.set_faults([])
    arrived = []
    for _ in range(10):
        arrived += bodies(db)
        segment.step()
    assert arrived == [*numbers(40), b"last"]
    assert segment.dropped(web) == segment.dropped(db) == {}


def test_late_frames_come_when_their_fault_ends(segment: Segment) -> None:
    web, db, _ = three(segment)
    segment.fabric.set_faults([fault(web, db, delay=60)])
    send(segment, web, db, *numbers(3))
    segment.fabric.set_faults([])
    send(segment, web, db, b"after")
    assert bodies(db) == [*numbers(3), b"after"]
    assert segment.fabric.wait_s() is None


def test_waiting_frames_are_bounded_for_each_sender(
    segment: Segment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_BYTES", 10_000)
    web, db, cache = three(segment)
    segment.fabric.set_faults([fault(None, cache, cut="hold")])
    for _ in range(3):
        send(segment, web, cache, *[bytes(1400)] * 5)
    send(segment, db, cache, b"mine")
    assert segment.dropped(web) == {FULL: 9}
    segment.fabric.set_faults([])
    assert [len(body) for body in bodies(cache)] == [1400] * 6 + [4]
    # The room is free again.
    segment.fabric.set_faults([fault(None, cache, delay=1)])
    send(segment, web, cache, *[bytes(1400)] * 6)
    assert segment.dropped(web) == {FULL: 9}


def test_held_frames_may_exceed_the_queue_of_a_slow_machine() -> None:
    segment = Segment()
    segment.fabric.settings.__dict__["queue_bytes"] = 4000  # of ports that join now
    web, db, _ = three(segment)
    segment.fabric.settings.__dict__["queue_bytes"] = 1 << 20
    segment.fabric.set_faults([fault(web, db, cut="hold")])
    send(segment, web, db, *numbers(200))
    segment.fabric.set_faults([])
    send(segment, web, db, b"more")
    arrived = []
    for _ in range(50):
        arrived += bodies(db)
        segment.step()
    assert arrived == numbers(200)
    assert segment.dropped(db) == {QUEUE_FULL: 1}


def test_no_late_frame_comes_during_a_hold(segment: Segment) -> None:
    web, db, _ = three(segment)
    segment.fabric.set_faults([fault(web, db, delay=0.1)])
    send(segment, web, db, b"late")
    segment.fabric.hold(5)
    segment.wait(0.1)
    assert bodies(db) == []
    assert 4 < (segment.fabric.wait_s() or 0) <= 5
    segment.fabric.release()
    assert segment.fabric.wait_s() == 0
    segment.fabric.deliver()
    assert bodies(db) == [b"late"]


def test_a_detached_machine_leaves_no_frames(segment: Segment) -> None:
    web, db, cache = three(segment)
    segment.fabric.set_faults([fault(None, None, delay=1)])
    send(segment, web, db, b"to db")
    send(segment, db, cache, b"from db")
    segment.fabric.detach(db.port)
    assert bodies(cache) == [b"from db"]
    segment.wait(2)
    assert segment.fabric.wait_s() is None
    segment.join(db)
    send(segment, web, db, b"again")
    segment.wait(1)
    assert bodies(db)[-1:] == [b"again"]


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ({"loss": 120}, "loss is between 0 and 100 percent, not 120"),
        ({"corrupt": -1}, "corrupt is between"),
        ({"delay": 1000}, "delay is between 0 and 600 seconds"),
        ({"delay": 0.1, "jitter": 0.2}, "jitter is at most the delay"),
        ({"reorder": 10}, "reorder needs a delay"),
        ({"delay": 1, "correlation": 10}, "correlation needs one of"),
        ({"rate": 1}, "rate is at least 300"),
        ({"cut": "drop", "loss": 3}, "no frame passes a cut link"),
        ({"cut": "x"}, "drops or holds"),
        ({"loss": "x"}, "loss is a number"),
        ({"loss": float("nan")}, "loss is a number"),
    ],
)
def test_senseless_words_are_refused(words: dict[str, Any], problem: str) -> None:
    assert any(problem in one for one in problems_of(words))
    with pytest.raises(ValueError, match="."):
        fault(None, None, **words)


def test_contradictions() -> None:
    web, db, cache = Peer(2, "web"), Peer(3, "db"), Peer(4, "cache")
    lossy = fault(web, None, loss=1)
    assert lossy.contradicts(fault(None, db, loss=2)) == ["loss"]
    assert lossy.contradicts(fault(db, web, loss=2)) == []
    assert lossy.contradicts(fault(web, db, delay=2)) == []
    cut = fault(web, db, cut="drop")
    assert cut.contradicts(fault(web, None, cut="drop")) == []
    assert cut.contradicts(fault(web, None, cut="hold")) == ["cut"]
    assert cut.contradicts(fault(cache, None, cut="hold")) == []


def test_the_process_wakes_for_late_frames() -> None:
    poll = select.epoll()
    fabric = Fabric(SETTINGS, poll)
    thread = threading.Thread(target=run, args=(fabric, Control(listen(), fabric, poll), poll))
    thread.start()
    client = Client(Path("control.sock"))
    try:
        web, db = Peer(2, "web"), Peer(3, "db")
        for peer in (web, db):
            client.ask(do="attach", member=peer.to_dict())
        given = fault(web, db, delay=0.2).to_dict()
        assert client.ask(do="faults", set=[given]) == {"ok": {"faults": [{"id": "0001", "waiting": 0}]}}
        begun = time.monotonic()
        web.send(web.frame(db.mac, KIND))
        assert select.select([db.socket], [], [], 10)[0]
        assert time.monotonic() - begun >= 0.2
        assert client.ask(do="faults")["ok"]["faults"][0]["waiting"] == 0
        assert "'words' is missing" in client.ask(do="faults", set=[{"id": "0001"}])["error"]
        assert client.ask(do="faults", set=[]) == {"ok": {"faults": []}}
    finally:
        client.ask(do="end")
        thread.join(10)
        client.close()
