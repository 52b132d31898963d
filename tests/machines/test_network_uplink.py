"""A network with an uplink: the switch and the uplink processes, with frames that a hostile guest would send.

The machines are datagram sockets. The host's own address stands for the outside, so the tests run offline.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
from collections.abc import AsyncIterator
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import pytest

from bough.hypervisor.network_uplinks import WayOut
from bough.hypervisor.switches import Switch
from bough.machines.plan import host_arch
from bough.networks.addresses import choose_network
from bough.networks.record import NetworkRecord
from bough.networks.switch.link_fault import DROP, Arc, LinkFault, Words
from bough.paths import Home
from bough.qemu.binary import find_qemu
from bough.qemu.jail import machine_uid
from bough.qemu.jail_probe import probe_jail
from bough.qemu.pid import Pid
from tests.machines.ethernet import NetworkGuest
from tests.machines.test_switch import UID, Lan, process_of
from tests.machines.test_uplink import listener, own_address, own_address6
from tests.unit.switch_peers import ipv4, udp

pytestmark = [
    pytest.mark.skipif(not shutil.which("passt"), reason="needs passt"),
    pytest.mark.skipif(own_address() is None, reason="this host has no route to anywhere"),
]
SWITCH = "10.9.0.1"
OTHER_UID = machine_uid("network-uplink-test") if os.geteuid() == 0 else None


class OpenLan(Lan):
    """A network with an uplink. Peers with a number below 10 reach the outside through it."""

    def __init__(self, home: Home, jail: Any) -> None:
        self.ways: dict[str, WayOut] = {}
        self.faults: list[dict[str, Any]] = []
        super().__init__(home, jail)
        own = choose_network(None, "back", [], subnet=IPv4Network("10.9.0.0/24"))
        self.record = NetworkRecord(
            id="ab12ab12ab12", name="back", subnet=own.subnet, prefix6=own.prefix6,
            switch_mac=own.switch_mac, internal=False, created="2026-01-01",
        )  # fmt: skip
        self.switch = self.service()

    def service(self) -> Switch:
        parts = (lambda: self.members, lambda: self.faults, lambda: self.ways)
        return Switch(self.record, self.paths, self.jail, UID, *parts)

    def machine(self, number: int, name: str) -> NetworkGuest:
        peer = self.peer(number, name)
        if number < 10:
            self.members[peer.port] |= {"gateway": True, "gateway6": True}
            mac = self.record.switch_mac
            addresses = (socket.inet_ntoa(peer.ipv4), "24", SWITCH, SWITCH, mac)
            self.ways[peer.port] = WayOut(f"{number:012x}", OTHER_UID, (), addresses)
        return NetworkGuest(peer.socket, peer.mac, f"{peer.directory}/switch.sock")

    async def uplinks(self) -> dict[str, int]:
        """Return port -> uplink process."""
        return {one["port"]: one["uplink"] for one in await self.switch.counters() if one["uplink"]}

    async def wait_for_another(self, pid: int) -> int:
        """Wait until the first port has another uplink process than `pid`."""
        async with asyncio.timeout(30):
            while (await self.uplinks()).get("m2-1", pid) == pid:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        return (await self.uplinks())["m2-1"]


@pytest.fixture
async def lan(bough_home: Home, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[OpenLan]:
    made = OpenLan(bough_home, await probe_jail(find_qemu(host_arch()), bough_home))
    made.paths.runtime.mkdir(parents=True, mode=0o711, exist_ok=True)
    monkeypatch.chdir(made.paths.runtime)
    yield made
    processes = [Pid.of(pid) for pid in (await made.uplinks()).values()]
    made.members.clear()
    made.ways.clear()
    await made.switch.sync()
    await made.switch.let_go()
    made.store.remove(made.record)
    async with asyncio.timeout(10):  # the processes end with the switch, without a kill
        for process in processes:
            if process is not None:
                await process.wait()


async def get_address(guest: NetworkGuest) -> None:
    await asyncio.to_thread(guest.get_address)


async def connects(guest: NetworkGuest, destination: str, port: int, *, timeout_s: float = 5.0) -> bool:
    return await asyncio.to_thread(guest.connects, destination, port, timeout_s=timeout_s)


async def test_the_outside_is_reached_by_ipv6(lan: OpenLan) -> None:
    own = own_address6()
    if own is None:
        pytest.skip("this host has no IPv6")
    web = lan.machine(2, "web")
    await lan.switch.sync()
    await get_address(web)
    web.address6 = "fd00:9::2"
    with listener("::") as port:
        assert await connects(web, own, port)
    with listener("::1") as port:
        for address in ("::1", "::", "::ffff:127.0.0.1"):
            assert not await connects(web, address, port, timeout_s=0.3)


async def reaches_outside(guest: NetworkGuest, *, timeout_s: float = 5.0) -> bool:
    with listener("0.0.0.0") as port:
        return await connects(guest, str(own_address()), port, timeout_s=timeout_s)


async def test_machines_reach_the_outside_each_by_its_own_process(lan: OpenLan) -> None:
    web, db = lan.machine(2, "web"), lan.machine(3, "db")
    await lan.switch.sync()
    for guest, address in ((web, "10.9.0.2"), (db, "10.9.0.3")):
        await get_address(guest)
        assert (guest.address, guest.gateway, guest.resolvers) == (address, SWITCH, [SWITCH])
        assert await reaches_outside(guest)
    assert sorted(await lan.uplinks()) == ["m2-1", "m3-1"]
    for pid in (await lan.uplinks()).values():
        (passt,) = Pid(pid, Pid.of(pid).start).children()  # type: ignore[union-attr]
        assert Path(f"/proc/{pid}/comm").read_text().startswith("nu-0000000000")
        if OTHER_UID is not None:
            for process in (pid, passt.number):
                assert Path(f"/proc/{process}").stat().st_uid == OTHER_UID


async def test_a_machine_with_another_way_out_gets_no_router(lan: OpenLan) -> None:
    web, cache = lan.machine(2, "web"), lan.machine(12, "cache")
    await lan.switch.sync()
    await get_address(web)
    with pytest.raises(KeyError):  # no router in the answer
        await get_address(cache)
    cache.gateway, cache._gateway_mac = SWITCH, bytes.fromhex(lan.record.switch_mac.replace(":", ""))
    assert not await reaches_outside(cache, timeout_s=0.5)
    assert list(await lan.uplinks()) == ["m2-1"]


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.2", "0.0.0.0", SWITCH, "10.9.0.9", "10.9.0.255"])
async def test_the_hosts_loopback_is_out_of_reach(lan: OpenLan, address: str) -> None:
    web = lan.machine(2, "web")
    await lan.switch.sync()
    await get_address(web)
    with listener("127.0.0.1") as port, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        assert not await connects(web, address, port, timeout_s=0.5)
        server.bind(("127.0.0.1", 0))
        server.settimeout(0.3)
        web.send_udp(address, server.getsockname()[1], b"hello")
        with pytest.raises(TimeoutError):
            await asyncio.to_thread(server.recv, 100)
    assert await reaches_outside(web)


async def test_a_neighbour_is_reached_by_no_detour(lan: OpenLan) -> None:
    """Neither through the gateway nor from outside come frames that the switch would have dropped."""
    web, db = lan.machine(2, "web"), lan.machine(3, "db")
    await lan.switch.sync()
    await get_address(web)
    mark = b"from the machine next door"
    gateway = web._gateway_mac + web.mac + b"\x08\x00"
    for source, to in (("10.9.0.2", "10.9.0.3"), ("10.9.0.3", "10.9.0.3"), ("10.9.0.77", "10.9.0.3")):
        packet = ipv4(socket.inet_aton(source), socket.inet_aton(to), 17, udp(7, 7, mark))
        web.send_frame(gateway + packet)
    await lan.switch.counters()
    db._end.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            assert mark not in db._end.recv(1 << 17)


async def test_a_killed_uplink_is_replaced(lan: OpenLan) -> None:
    web = lan.machine(2, "web")
    await lan.switch.sync()
    await get_address(web)
    assert await reaches_outside(web)
    pid = (await lan.uplinks())["m2-1"]
    passt = Pid.of(pid).children()[0]  # type: ignore[union-attr]
    passt.kill()  # the filter starts passt again by itself
    await passt.wait()
    await asyncio.sleep(1.2)
    assert await reaches_outside(web)
    assert (await lan.uplinks())["m2-1"] == pid
    Pid.of(pid).kill()  # type: ignore[union-attr]
    assert await lan.wait_for_another(pid)
    assert await reaches_outside(web)


async def test_a_killed_switch_is_replaced_with_its_uplinks(lan: OpenLan) -> None:
    web = lan.machine(2, "web")
    await lan.switch.sync()
    await get_address(web)
    pid = (await lan.uplinks())["m2-1"]
    before = Pid.of(pid)
    process_of(lan).innermost().kill()
    await lan.wait_for_another(pid)
    assert before is not None
    async with asyncio.timeout(10):
        await before.wait()
    assert await reaches_outside(web)


async def test_the_next_service_adopts_the_uplinks(lan: OpenLan) -> None:
    web = lan.machine(2, "web")
    await lan.switch.sync()
    await get_address(web)
    uplinks = await lan.uplinks()
    await lan.switch.let_go()
    assert await reaches_outside(web)  # without a service
    lan.switch = lan.service()
    await lan.switch.sync()
    assert await lan.uplinks() == uplinks
    Pid.of(uplinks["m2-1"]).kill()  # type: ignore[union-attr]
    await lan.wait_for_another(uplinks["m2-1"])
    assert await reaches_outside(web)


async def test_an_uplink_ends_with_its_machine(lan: OpenLan) -> None:
    lan.machine(2, "web")
    lan.machine(3, "db")
    await lan.switch.sync()
    uplinks = {port: Pid.of(pid) for port, pid in (await lan.uplinks()).items()}
    lan.members.pop("m2-1")
    lan.ways.pop("m2-1")
    await lan.switch.sync()
    ended, other = uplinks["m2-1"], uplinks["m3-1"]
    assert ended is not None
    assert other is not None
    async with asyncio.timeout(10):
        await ended.wait()
    assert other.is_alive()


async def test_an_isolated_machine_does_not_reach_the_outside(lan: OpenLan) -> None:
    web = lan.machine(2, "web")
    await lan.switch.sync()
    await get_address(web)
    own = frozenset(("m2-1",))
    cut = LinkFault("ab12", 0, (Arc(own, None), Arc(None, own)), Words(cut=DROP))
    lan.faults = [cut.to_dict()]
    await lan.switch.sync()
    assert not await reaches_outside(web, timeout_s=0.5)
    lan.faults = []
    await lan.switch.sync()
    assert await reaches_outside(web)


async def test_it_takes_no_processor_time_at_rest(lan: OpenLan) -> None:
    web = lan.machine(2, "web")
    await lan.switch.sync()
    await get_address(web)
    assert await reaches_outside(web)
    uplink = Pid.of((await lan.uplinks())["m2-1"])
    assert uplink is not None
    processes = [process_of(lan).innermost(), uplink]
    before = [process.used_s() for process in processes]
    await asyncio.sleep(2)
    assert [process.used_s() for process in processes] == before
