"""The agent's settings of cards on networks between machines."""

from __future__ import annotations

import os
import signal
import subprocess
from configparser import RawConfigParser
from pathlib import Path
from types import SimpleNamespace

import pytest

from bough.guest import agent_links, agent_plain_links, agent_resolver, agent_rtnetlink, agent_uplink
from tests.waiting import wait_until

LINK = {
    "name": "nic1",
    "mac": "52:54:00:00:00:01",
    "addresses": ["10.1.0.2/24", "fd00::2/64"],
    "mtu": 9000,
    "resolver": "10.1.0.1",
    "domains": ["back", "~0.1.10.in-addr.arpa"],
    "default": False,
}


@pytest.fixture(autouse=True)
def _own_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep this host's name servers out of all tests."""
    monkeypatch.setattr(agent_resolver, "RESOLV_CONF", str(tmp_path / "resolv.conf"))
    monkeypatch.setattr(agent_resolver, "OWN_LINES", str(tmp_path / "own"))


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Return the commands that the agent runs. The guest's files are in `tmp_path`."""
    run: list[list[str]] = []
    (tmp_path / "netif").mkdir()
    (tmp_path / "enabled").touch()
    monkeypatch.setattr(agent_links, "_DIRECTORY", str(tmp_path / "network"))
    monkeypatch.setattr(agent_links, "_RUNS", str(tmp_path / "netif"))
    monkeypatch.setattr(agent_links, "_ENABLED", (str(tmp_path / "enabled"),))
    monkeypatch.setattr(agent_links, "run", run.append)
    monkeypatch.setattr(agent_links, "_APPLIES_S", 0.0)  # no networkd sets the addresses here
    return run


def tell(*_: object) -> None:
    pass


def test_networkd_gets_a_file_for_each_card(tmp_path: Path, commands: list[list[str]]) -> None:
    assert agent_links.set_links({"links": [LINK]}, tell) == {"changed": 1}
    assert commands == [["networkctl", "reload"]]
    text = (tmp_path / "network" / "70-bough-nic1.network").read_text()
    assert text.count("\nAddress=") == 2
    assert "Address=10.1.0.2/24\n" in text
    parser = RawConfigParser(strict=False)
    parser.read_string(text)
    assert parser["Match"]["MACAddress"] == LINK["mac"]
    assert parser["Link"]["MTUBytes"] == "9000"
    assert parser["Network"]["DNS"] == "10.1.0.1"
    assert parser["Network"]["Domains"] == "back ~0.1.10.in-addr.arpa"
    assert parser["Network"]["DNSDefaultRoute"] == "no"


def test_networkd_gets_the_default_route(tmp_path: Path, commands: list[list[str]]) -> None:
    agent_links.set_links({"links": [{**LINK, "gateways": ["10.1.0.1"]}]}, tell)
    text = (tmp_path / "network" / "70-bough-nic1.network").read_text()
    assert text.count("Gateway=") == 1
    assert "\nGateway=10.1.0.1\nDNS=" in text


def test_nothing_happens_without_a_change(commands: list[list[str]]) -> None:
    agent_links.set_links({"links": [LINK]}, tell)
    assert agent_links.set_links({"links": [LINK]}, tell) == {"changed": 0}
    assert agent_links.set_links({"links": [{**LINK, "default": True}]}, tell) == {"changed": 1}
    assert len(commands) == 2


def test_before_networkd_runs_there_is_only_the_file(tmp_path: Path, commands: list[list[str]]) -> None:
    (tmp_path / "netif").rmdir()
    agent_links.set_links({"links": [LINK]}, tell)
    assert commands == []
    assert (tmp_path / "network" / "70-bough-nic1.network").exists()


def test_the_answer_follows_the_address(commands: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_links, "_APPLIES_S", 30.0)
    looks = iter([False, False, True])
    looked: list[str] = []

    def is_set(address: str) -> bool:
        looked.append(address)
        return next(looks)

    monkeypatch.setattr(agent_links, "_is_set", is_set)
    agent_links.set_links({"links": [LINK]}, tell)
    assert looked == ["10.1.0.2"] * 3


def test_which_address_is_set() -> None:
    assert agent_links._is_set("127.0.0.1")
    assert not agent_links._is_set("192.0.2.1")


@pytest.mark.parametrize("links", [None, [], ["x"], {}])
def test_no_links(links: object, commands: list[list[str]]) -> None:
    assert agent_links.set_links({"links": links}, tell) == {"changed": 0}
    assert commands == []


# -- guests without networkd ------------------------------------------------------------------------


class Cards:
    """Cards of a made-up guest, in the place of the kernel's."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *present: str) -> None:
        self.addresses = [agent_rtnetlink.parse_address(text) for text in present]
        self.up: list[tuple[str, int | None]] = []
        self.later: list[list[str]] = []
        monkeypatch.setattr(agent_rtnetlink, "find_card", lambda mac: "eth1" if mac == LINK["mac"] else None)
        monkeypatch.setattr(agent_rtnetlink, "bring_up", lambda card, mtu=None: self.up.append((card, mtu)))
        monkeypatch.setattr(agent_rtnetlink, "addresses_of", lambda _: list(self.addresses))
        monkeypatch.setattr(agent_rtnetlink, "add_address", lambda _, one: self.addresses.append(one))
        monkeypatch.setattr(agent_rtnetlink, "remove_address", lambda _, one: self.addresses.remove(one))
        monkeypatch.setattr(agent_rtnetlink, "is_port", lambda _: False)
        monkeypatch.setattr(agent_plain_links, "_finish_later", self.later.append)

    def have(self, *texts: str) -> bool:
        return sorted(self.addresses) == sorted(map(agent_rtnetlink.parse_address, texts))


@pytest.fixture
def plain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A guest without networkd, after its boot. Return the path of its resolv.conf."""
    monkeypatch.setattr(agent_links, "_RUNS", str(tmp_path / "netif"))
    monkeypatch.setattr(agent_links, "_ENABLED", ())
    monkeypatch.setattr(agent_resolver, "_OWNERS", (str(tmp_path / "owner"),))
    monkeypatch.setattr(agent_uplink, "is_boot_over", lambda: True)
    monkeypatch.setattr(agent_uplink, "_configures", lambda: False)
    return tmp_path / "resolv.conf"


def test_the_agent_sets_the_addresses_itself(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cards = Cards(monkeypatch, "10.1.0.9/24", "192.168.5.5/24")
    assert agent_links.set_links({"links": [LINK]}, tell) == {"changed": 1}
    assert cards.up == [("lo", None), ("eth1", 9000)]
    # The parent's address of the same subnet is gone, an address of the user stays.
    assert cards.have("10.1.0.2/24", "fd00::2/64", "192.168.5.5/24")
    assert agent_links.set_links({"links": [LINK]}, tell) == {"changed": 0}


def test_the_agent_sets_the_default_route_itself(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Cards(monkeypatch)
    routes: list[tuple[str, bytes]] = []
    monkeypatch.setattr(agent_rtnetlink, "set_default_route", lambda *route: routes.append(route))
    way = {**LINK, "gateways": ["10.1.0.1"]}
    other = {**LINK, "mac": "52:54:00:00:00:99", "resolver": "10.2.0.1"}
    agent_links.set_links({"links": [way, other]}, tell)
    assert routes == [("eth1", bytes((10, 1, 0, 1)))]
    # The resolver of the way outside denies names of the other network.
    assert plain.read_text().splitlines()[1:] == ["nameserver 10.2.0.1", "nameserver 10.1.0.1"]


def test_a_card_that_is_not_there_is_left_out(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cards = Cards(monkeypatch)
    assert agent_links.set_links({"links": [{**LINK, "mac": "52:54:00:00:00:99"}]}, tell) == {"changed": 0}
    assert cards.addresses == []


def test_our_name_servers_come_first(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Cards(monkeypatch)
    plain.write_text("search example.org\nnameserver 192.0.2.53\noptions rotate\n")
    agent_links.set_links({"links": [LINK]}, tell)
    wanted = "search back example.org\nnameserver 10.1.0.1\nnameserver 192.0.2.53\noptions rotate\n"
    assert plain.read_text() == wanted
    agent_links.set_links({"links": [LINK]}, tell)
    assert plain.read_text() == wanted
    # A fork on another network has another name server.
    agent_links.set_links({"links": [{**LINK, "resolver": "10.2.0.1"}]}, tell)
    assert "10.1.0.1" not in plain.read_text()
    assert plain.read_text().splitlines()[1] == "nameserver 10.2.0.1"


def test_a_file_of_another_program_stays(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Cards(monkeypatch)
    plain.write_text("nameserver 127.0.0.53\n")
    (plain.parent / "owner").touch()
    agent_links.set_links({"links": [LINK]}, tell)
    assert plain.read_text() == "nameserver 127.0.0.53\n"


def test_without_networks_the_file_is_not_touched(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Cards(monkeypatch)
    plain.write_text("# mine\n")
    agent_links.set_links({"links": [], "uplinks": []}, tell)
    assert plain.read_text() == "# mine\n"


def test_during_the_boot_the_rest_comes_later(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cards = Cards(monkeypatch)
    monkeypatch.setattr(agent_uplink, "is_boot_over", lambda: False)
    agent_links.set_links({"links": [LINK], "uplinks": ["52:54:00:00:00:05"]}, tell)
    assert cards.later == [["52:54:00:00:00:05"]]
    assert not plain.exists()


def test_only_a_card_that_nobody_configures_asks_by_dhcp(
    plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cards = Cards(monkeypatch)
    mac = str(LINK["mac"])
    agent_links.set_links({"uplinks": [mac]}, tell)
    assert cards.later == [[mac]]
    assert agent_uplink.cards_without_address([mac, "52:54:00:00:00:99"]) == ["eth1"]
    cards.addresses = [agent_rtnetlink.parse_address("10.0.2.15/24")]
    assert agent_uplink.cards_without_address([mac]) == []
    cards.addresses = []
    monkeypatch.setattr(agent_uplink, "_configures", lambda: True)
    assert agent_uplink.cards_without_address([mac]) == []


def test_the_script_of_a_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the script with a busybox that notes its calls."""
    busybox = tmp_path / "busybox"
    noted = tmp_path / "noted"
    busybox.write_text(f'#!/bin/sh\n[ "$1" = cat ] && exec cat "$2"\necho "$@" >>{noted}\n')
    busybox.chmod(0o755)
    own, resolv = tmp_path / "own", tmp_path / "resolv.conf"
    own.write_text("nameserver 10.1.0.1\nsearch back\n")
    monkeypatch.setattr(agent_resolver, "OWN_LINES", str(own))
    monkeypatch.setattr(agent_resolver, "RESOLV_CONF", str(resolv))
    monkeypatch.setattr(agent_uplink, "_OWNED", str(tmp_path / "owned"))
    script = agent_uplink.render_script(str(busybox))
    lease = {
        "interface": "eth0",
        "ip": "10.0.2.15",
        "mask": "24",
        "router": "10.0.2.2",
        "dns": "10.0.2.3 ::1",
    }
    subprocess.run(["sh", "-c", script, "sh", "bound"], env={"PATH": "/usr/bin:/bin", **lease}, check=True)
    assert noted.read_text().splitlines() == [
        "ip -4 addr add 10.0.2.15/24 dev eth0",
        "ip -4 route add 10.0.2.2 dev eth0",
        "ip -4 route replace default via 10.0.2.2 dev eth0",
    ]
    servers = "nameserver 10.0.2.3\nnameserver ::1\n"
    assert resolv.read_text() == "nameserver 10.1.0.1\nsearch back\n" + servers


def test_addresses_of_the_loopback() -> None:
    loopback = agent_rtnetlink.parse_address("127.0.0.1/8")
    assert loopback in agent_rtnetlink.addresses_of("lo")
    assert agent_rtnetlink.is_in(loopback[0], loopback)
    assert not agent_rtnetlink.is_in(agent_rtnetlink.parse_address("fd00::1/64")[0], loopback)
    assert agent_rtnetlink.find_card("52:54:00:ff:ff:ff") is None


def test_a_refused_address_is_an_error() -> None:
    with pytest.raises(OSError):
        agent_rtnetlink.add_address("lo", (b"\1", 8))


def test_the_script_lies_where_programs_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    monkeypatch.setattr(agent_uplink, "_SCRIPT_PLACES", (str(first), str(second)))
    flags = {str(first): 8, str(second): 0}
    monkeypatch.setattr(os, "statvfs", lambda place: SimpleNamespace(f_flag=flags[place]))
    assert agent_uplink._write_script() == f"{second}/dhcp.sh"
    assert os.access(second / "dhcp.sh", os.X_OK)
    flags[str(second)] = 8
    with pytest.raises(OSError, match="no directory may contain programs"):
        agent_uplink._write_script()


def test_a_running_client_asks_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_uplink, "_PID_FILE", str(tmp_path / "dhcp-{}.pid"))
    assert not agent_uplink._renews("eth0")
    (tmp_path / "dhcp-eth0.pid").write_text(f"{os.getpid()}\n")
    assert not agent_uplink._renews("eth0")  # another program with the pid of an ended client
    with subprocess.Popen(["sh", "-c", "sleep 60; true", "udhcpc"]) as client:
        (tmp_path / "dhcp-eth0.pid").write_text(f"{client.pid}\n")
        arguments = Path(f"/proc/{client.pid}/cmdline")
        wait_until(lambda: b"udhcpc" in arguments.read_bytes(), what="the kernel shows the new program")
        assert agent_uplink._renews("eth0")
        assert client.wait() == -signal.SIGUSR1
