"""Linux network stacks on a network: addresses, names and TCP through a switch, without guests."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from bough.guest.agent_links import _render
from bough.machines.plan import host_arch
from bough.networks.addresses import choose_ipv4, choose_mac, ipv6_of
from bough.networks.names import names_of
from bough.paths import Home
from bough.qemu.binary import find_qemu
from bough.qemu.jail_probe import probe_jail
from tests.machines.linux_stack import CARD, NETWORKD
from tests.machines.test_switch import UID, Lan, process_of

PROGRAM = Path(__file__).with_name("linux_stack.py")
IMAGE_FILE = (
    Path(__file__).parents[2] / "src/bough/images/debian/files/etc/systemd/network/80-ethernet.network"
)
TIMEOUT_S = 60
ASK = """
import dnslib, sys
query = dnslib.DNSRecord.question(sys.argv[2], sys.argv[3])
answer = dnslib.DNSRecord.parse(query.send(sys.argv[1], timeout=5))
print(answer.header.rcode, *(str(record.rdata) for record in answer.rr))
"""
SERVE = "import socket; s = socket.create_server(('', 7000)); c = s.accept()[0]; c.sendall(c.recv(99)[::-1])"
CALL = """
import socket, sys
s = socket.create_connection((sys.argv[1], 7000), 20)
s.sendall(b"hello")
print(s.recv(99))
"""

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not Path("/dev/net/tun").exists() or not Path(NETWORKD).exists()
    or shutil.which("unshare") is None,
    reason="needs root, /dev/net/tun and systemd-networkd",
)  # fmt: skip


class Stack:
    """One network stack, on a port of the network."""

    def __init__(self, process: asyncio.subprocess.Process, member: dict[str, Any]) -> None:
        self._process = process
        self.ipv4, self.ipv6 = member["addresses"]

    async def run(self, *argv: str) -> tuple[int, str]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(argv).encode() + b"\n")
        async with asyncio.timeout(TIMEOUT_S):
            status, output = json.loads(await self._process.stdout.readline())
        return status, output.strip()

    async def wait_address(self, address: str) -> None:
        async with asyncio.timeout(TIMEOUT_S):
            while f" {address}/" not in (await self.run("ip", "-o", "addr", "show", CARD))[1]:  # noqa: ASYNC110
                await asyncio.sleep(0.1)

    async def ask(self, resolver: str, name: str, kind: str = "A") -> str:
        status, output = await self.run(sys.executable, "-c", ASK, resolver, name, kind)
        assert status == 0, output
        return output

    async def end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        await self._process.wait()


@pytest.fixture
async def lan(bough_home: Home, tmp_path: Path) -> AsyncIterator[Lan]:
    made = Lan(bough_home, await probe_jail(find_qemu(host_arch()), bough_home))
    yield made
    made.members.clear()
    await made.switch.sync()
    await made.switch.let_go()
    made.store.remove(made.record)


async def start(lan: Lan, name: str, *files: Path) -> Stack:
    member = lan.members[f"{name}-nic0"]
    directory = lan.store.make_port(lan.record, member["port"], UID)
    namespaces = ["unshare", "-n", "-m", "--propagation", "private"]
    process = await asyncio.create_subprocess_exec(
        *namespaces, sys.executable, str(PROGRAM), str(directory), member["mac"], *map(str, files),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    return Stack(process, member)


def add_member(lan: Lan, name: str) -> dict[str, Any]:
    mac = choose_mac(None, lan.record.name, name, ())
    addresses = [str(choose_ipv4(lan.record.subnet, name, ())), str(ipv6_of(lan.record.prefix6, mac))]
    lan.members[f"{name}-nic0"] = {
        "port": f"{name}-nic0",
        "mac": mac,
        "addresses": addresses,
        "names": list(names_of(name, lan.record.name)),
    }
    lan.store.make_port(lan.record, f"{name}-nic0", UID)
    return lan.members[f"{name}-nic0"]


def write_settings(member: dict[str, Any], lan: Lan, path: Path) -> Path:
    """Write the file that the agent writes in a guest."""
    link = {
        "mac": member["mac"],
        "addresses": [f"{member['addresses'][0]}/24", f"{member['addresses'][1]}/64"],
        "mtu": lan.record.mtu,
        "resolver": str(lan.record.addresses.switch_ipv4),
        "domains": ["back"],
        "default": True,
    }
    path.write_text(_render(link))
    return path


async def test_two_stacks_find_each_other_by_name(lan: Lan, tmp_path: Path) -> None:
    """`web` has the settings of the agent, `db` asks by DHCP."""
    settings = write_settings(add_member(lan, "web"), lan, tmp_path / "70-bough-nic0.network")
    add_member(lan, "db")
    await lan.switch.sync()
    web, db = await start(lan, "web", IMAGE_FILE, settings), await start(lan, "db", IMAGE_FILE)
    try:
        await web.wait_address(web.ipv4)
        await web.wait_address(web.ipv6)
        await db.wait_address(db.ipv4)
        resolver = str(lan.record.addresses.switch_ipv4)
        assert await web.ask(resolver, "db.back") == f"0 {db.ipv4}"
        assert await db.ask(resolver, "web") == f"0 {web.ipv4}"
        async with asyncio.timeout(TIMEOUT_S):  # until duplicate address detection has shown the address
            while await db.ask(resolver, "web.back", "AAAA") != f"0 {web.ipv6}":  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        assert await db.ask(resolver, "nobody.back") == "3"
        _, lease = await db.run("sh", "-c", "cat /run/systemd/netif/leases/*")
        assert "LIFETIME=4294967295" in lease
        await db.run("sh", "-c", f'{sys.executable} -c "$0" >/dev/null 2>&1 & sleep 1', SERVE)
        process_of(lan).innermost().kill()  # the next switch carries on
        assert await web.run(sys.executable, "-c", CALL, db.ipv4) == (0, "b'olleh'")
        dropped = [one["dropped"] for one in await lan.switch.counters()]
        assert all(set(reasons) <= {"no_machine"} for reasons in dropped), dropped
    finally:
        await web.end()
        await db.end()
