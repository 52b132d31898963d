"""The process of a switch in its jail: started, adopted, started again, ended.

The machines are datagram sockets.
"""

from __future__ import annotations

import asyncio
import os
import select
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from bough.errors import HostLacks
from bough.hypervisor.switches import Switch
from bough.machines.plan import host_arch
from bough.networks.addresses import choose_network
from bough.networks.record import NetworkRecord
from bough.networks.store import NetworkStore
from bough.paths import Home
from bough.qemu.binary import find_qemu
from bough.qemu.jail import machine_uid
from bough.qemu.jail_probe import probe_jail
from bough.qemu.pid import Pid
from tests.unit.switch_peers import Peer

KIND = b"\x88\xb5"
UID = machine_uid("switch-test") if os.geteuid() == 0 else None


class Lan:
    """A network, its switch, and two machines."""

    def __init__(self, home: Home, jail: Any) -> None:
        self.home, self.jail = home, jail
        own = choose_network(None, "back", [])
        self.record = NetworkRecord(
            id="ab12ab12ab12",
            name="back",
            subnet=own.subnet,
            prefix6=own.prefix6,
            switch_mac=own.switch_mac,
            created="2026-01-01",
        )
        self.paths = home.network(self.record.id)
        self.store = NetworkStore(home)
        self.members: dict[str, dict[str, Any]] = {}
        self.switch = self.service()

    def service(self) -> Switch:
        """Return the switch as another service sees it."""
        return Switch(self.record, self.paths, self.jail, UID, lambda: self.members)

    def peer(self, number: int, name: str) -> Peer:
        self.store.make_port(self.record, f"m{number}-1", UID)
        peer = Peer(number, name)
        # As for a QEMU, which is another user than the switch: see qemu/switch_ports.py.
        (peer.directory / "nic.sock").chmod(0o666)
        self.members[peer.port] = peer.to_dict()
        return peer


@pytest.fixture
async def lan(bough_home: Home, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Lan]:
    made = Lan(bough_home, await probe_jail(find_qemu(host_arch()), bough_home))
    made.paths.runtime.mkdir(parents=True, mode=0o711, exist_ok=True)
    monkeypatch.chdir(made.paths.runtime)
    yield made
    made.members.clear()
    await made.switch.sync()
    await made.switch.let_go()
    made.store.remove(made.record)


async def carry(sender: Peer, receiver: Peer) -> None:
    frame = sender.frame(receiver.mac, KIND, b"hello")
    sender.send(frame)
    ready = await asyncio.to_thread(select.select, [receiver.socket], [], [], 10)
    assert ready[0], "no frame arrived"
    assert receiver.received() == [frame]


def process_of(lan: Lan) -> Pid:
    _, number, start = lan.paths.process.read_text().split()
    return Pid(int(number), int(start))


async def test_a_switch_lives_as_long_as_its_machines(lan: Lan) -> None:
    await lan.switch.sync()
    assert not lan.switch.runs
    web, db = lan.peer(2, "web"), lan.peer(3, "db")
    await lan.switch.sync()
    pid = process_of(lan)
    await carry(web, db)
    await carry(db, web)
    del lan.members[db.port]
    await lan.switch.sync()
    assert [one["port"] for one in await lan.switch.counters()] == [web.port]
    lan.members.clear()
    await lan.switch.sync()
    assert not pid.is_alive()
    assert not lan.paths.control_socket.exists()
    assert not lan.switch.runs


async def test_the_jail_shows_nothing_of_the_host(lan: Lan) -> None:
    if lan.jail.bwrap is None:
        pytest.skip("this host has no bubblewrap")
    lan.peer(2, "web")
    await lan.switch.sync()
    inner = process_of(lan).innermost().number
    root = Path(f"/proc/{inner}/root")
    assert sorted(path.name for path in root.joinpath(*lan.home.root.parts[1:]).iterdir()) == ["run"]
    assert not (root / "home").exists()
    status = Path(f"/proc/{inner}/status").read_text()
    assert "CapEff:\t0000000000000000" in status
    assert "NoNewPrivs:\t1" in status
    assert UID is None or f"Uid:\t{UID}\t" in status
    assert len(Path(f"/proc/{inner}/net/dev").read_text().splitlines()) == 3  # the loopback alone


async def test_the_next_service_adopts_it(lan: Lan) -> None:
    web, db = lan.peer(2, "web"), lan.peer(3, "db")
    await lan.switch.sync()
    pid = process_of(lan)
    await lan.switch.let_go()
    await carry(web, db)  # it outlives the service
    cache = lan.peer(4, "cache")
    del lan.members[db.port]
    lan.switch = lan.service()
    await lan.switch.sync()
    assert process_of(lan) == pid
    await carry(web, cache)
    assert {one["port"] for one in await lan.switch.counters()} == {web.port, cache.port}


async def test_a_switch_without_machines_is_ended_by_the_next_service(lan: Lan) -> None:
    lan.peer(2, "web")
    await lan.switch.sync()
    pid = process_of(lan)
    await lan.switch.let_go()
    lan.members.clear()
    lan.switch = lan.service()
    await lan.switch.sync()
    assert not pid.is_alive()


async def test_it_starts_again_when_it_dies(lan: Lan) -> None:
    web, db = lan.peer(2, "web"), lan.peer(3, "db")
    await lan.switch.sync()
    pid = process_of(lan)
    await carry(web, db)
    pid.innermost().kill()
    async with asyncio.timeout(30):
        while not lan.paths.process.exists() or process_of(lan) == pid or not await lan.switch.counters():  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    await carry(web, db)
    await carry(db, web)


async def test_one_that_hangs_is_replaced_by_the_next_service(lan: Lan) -> None:
    web, db = lan.peer(2, "web"), lan.peer(3, "db")
    await lan.switch.sync()
    pid = process_of(lan)
    await lan.switch.let_go()
    lan.paths.control_socket.unlink()  # a switch that cannot be reached
    lan.switch = lan.service()
    await lan.switch.sync()
    assert not pid.is_alive()
    await carry(web, db)


async def test_a_switch_that_cannot_start_says_why(lan: Lan, monkeypatch: pytest.MonkeyPatch) -> None:
    lan.peer(2, "web")
    monkeypatch.setattr("bough.hypervisor.switches.RUN", "raise SystemExit('no luck')")
    with pytest.raises(HostLacks, match="switch of network 'back' does not start: no luck"):
        await lan.switch.sync()
    assert not lan.paths.process.exists()
    lan.members.clear()


async def test_it_takes_no_processor_time_at_rest(lan: Lan) -> None:
    lan.peer(2, "web")
    await lan.switch.sync()
    await lan.switch.counters()
    pid = process_of(lan).innermost()
    before = pid.used_s()
    await asyncio.sleep(2)
    assert pid.used_s() == before
