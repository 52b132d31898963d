"""The agent's settings of cards on networks between machines."""

from __future__ import annotations

from configparser import RawConfigParser
from pathlib import Path

import pytest

from bough.guest import agent_links

LINK = {
    "name": "nic1",
    "mac": "52:54:00:00:00:01",
    "addresses": ["10.1.0.2/24", "fd00::2/64"],
    "mtu": 9000,
    "resolver": "10.1.0.1",
    "domains": ["back", "~0.1.10.in-addr.arpa"],
    "default": False,
}


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Return the commands that the agent runs. The guest's files are in `tmp_path`."""
    run: list[list[str]] = []
    (tmp_path / "netif").mkdir()
    monkeypatch.setattr(agent_links, "_DIRECTORY", str(tmp_path / "network"))
    monkeypatch.setattr(agent_links, "_RUNS", str(tmp_path / "netif"))
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
