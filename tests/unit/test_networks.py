"""Networks without machines that run: records, addresses, and who belongs on a network."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import pytest

from bough.errors import Conflict, HostLacks, InUse, InvalidInput, NotFound
from bough.hypervisor.network_cards import cards_on, way_out
from bough.hypervisor.networks import Networks
from bough.machines.events import Events
from bough.machines.nics import render_links, renew_mac_addresses, resolve_nics
from bough.machines.record import Hardware, MachineRecord
from bough.machines.state import State
from bough.networks.record import NetworkRecord
from bough.networks.store import NetworkStore
from bough.paths import Home
from bough.projects.store import ProjectStore
from bough.qemu.jail import Jail
from bough.spec import parse_spec


@dataclass
class Stub:
    """The parts of a machine that Networks uses."""

    record: MachineRecord
    state: State = State.STOPPED

    @property
    def id(self) -> str:
        return self.record.id

    @property
    def name(self) -> str:
        return self.record.name


@dataclass
class House:
    """A home with networks and machines."""

    home: Home
    machines: list[Stub] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.store = NetworkStore(self.home)
        self.networks = Networks(self.home, Events(), self.store, self.machines, ProjectStore(self.home))

    def machine(self, name: str, *nics: Any, state: State = State.STOPPED) -> Stub:
        spec = parse_spec({"image": "debian:12", "nics": list(nics)})
        hardware = Hardware(
            arch="x86_64", machine_type="pc-q35-7.2", cpu_model="qemu64", firmware="bios",
            uuid="u", vmgenid="v", nics=resolve_nics(spec), uid=None,
        )  # fmt: skip
        record = MachineRecord(
            id=f"{len(self.machines):012x}", name=name, spec=spec, image_digest="d", image_agent=True,
            hardware=hardware, created="2020-01-01T00:00:00",
        )  # fmt: skip
        self.machines.append(Stub(record, state))
        return self.machines[-1]

    def link(self, machine: Stub, network: str) -> None:
        self.networks._choose_addresses(machine.record, self.store.find(network))

    def addresses(self, network: str) -> list[str]:
        record = self.store.find(network)
        return [str(card.ipv4) for one in self.machines for card in cards_on(record, one.record)]


@pytest.fixture
def house(tmp_path: Path) -> House:
    home = Home.at(tmp_path)
    home.create()
    return House(home)


def test_records_are_read_again(house: House) -> None:
    made = house.networks.create("back", subnet="10.1.0.0/16", mtu=9000)
    store = NetworkStore(house.home)
    store.open()
    assert list(store) == [made]
    assert store.find("back") == store.find(made.id) == made
    with pytest.raises(NotFound, match="no network is called 'bck'") as error:
        store.find("bck")
    assert error.value.hint == "did you mean 'back'?"


def test_a_damaged_record_keeps_no_other_from_being_used(house: House) -> None:
    made = house.networks.create("back")
    house.home.network("0" * 12).record.write_text("{")
    store = NetworkStore(house.home)
    store.open()
    assert list(store) == [made]
    with pytest.raises(Conflict, match="cannot be read"):
        store.find("0" * 12)


async def test_a_network_with_machines_is_kept(house: House) -> None:
    house.networks.create("back")
    for name in ("a", "b", "c", "d"):
        house.machine(name, "uplink", "back")
    with pytest.raises(InUse, match="in use by a, b, c and 1 more"):
        await house.networks.delete("back")
    house.machines.clear()
    await house.networks.delete("back")
    assert list(house.home.networks.iterdir()) == []


def test_addresses_stay_and_differ(house: House) -> None:
    house.networks.create("back", subnet="10.1.0.0/29")
    for number in range(5):
        house.link(house.machine(f"m{number}", "back"), "back")
    before = house.addresses("back")
    assert len(set(before)) == 5
    for machine in house.machines:
        house.link(machine, "back")
    assert house.addresses("back") == before
    with pytest.raises(Conflict, match="is full"):
        house.link(house.machine("late", "back"), "back")
    del house.machines[0], house.machines[-1]
    assert house.addresses("back") == before[1:]


def test_a_wanted_address_is_kept_for_its_machine(house: House) -> None:
    house.networks.create("back", subnet="10.1.0.0/29")
    others = [house.machine(f"m{number}", "back") for number in range(4)]
    wanted = house.machine("db", {"network": "back", "ipv4": "10.1.0.4"})
    for machine in others:
        house.link(machine, "back")
    house.link(wanted, "back")
    assert [str(nic.link.ipv4) for nic in wanted.record.hardware.nics if nic.link] == ["10.1.0.4/29"]
    found = {str(nic.link.ipv4.ip) for one in others for nic in one.record.hardware.nics if nic.link}
    assert found == {"10.1.0.2", "10.1.0.3", "10.1.0.5", "10.1.0.6"}
    house.link(wanted, "back")
    with pytest.raises(Conflict, match=r"another machine of the network has the address 10\.1\.0\.4"):
        house.link(house.machine("second", {"network": "back", "ipv4": "10.1.0.4"}), "back")
    with pytest.raises(InvalidInput, match=r"10\.2\.0\.4 is not in the subnet"):
        house.link(house.machine("third", {"network": "back", "ipv4": "10.2.0.4"}), "back")


def test_a_machine_of_another_subnet_gets_a_new_address(house: House) -> None:
    house.networks.create("back", subnet="10.1.0.0/24")
    machine = house.machine("db", "back")
    house.link(machine, "back")
    record = house.store.find("back")
    record.subnet = IPv4Network("10.2.0.0/24")
    house.link(machine, "back")
    assert house.addresses("back")[0].startswith("10.2.0.")


def test_a_fork_gets_new_addresses(house: House) -> None:
    house.networks.create("back")
    parent = house.machine("db", "back", state=State.RUNNING)
    house.link(parent, "back")
    fork = house.machine("fork", "back")
    fork.record.hardware.nics = renew_mac_addresses(parent.record.hardware.nics, None)
    house.link(fork, "back")
    assert len(set(house.addresses("back"))) == 2
    # With its parent's identity it must wait until the parent has stopped.
    fork.record.hardware.nics = [nic.model_copy() for nic in parent.record.hardware.nics]
    with pytest.raises(Conflict, match="machine 'db' has the same address on network 'back'") as error:
        house.link(fork, "back")
    assert "stop 'db' first" in (error.value.hint or "")
    parent.state = State.STOPPED
    house.link(fork, "back")


def test_the_switch_learns_of_machines_that_run(house: House) -> None:
    record = house.networks.create("back")
    web = house.machine("web", "uplink", {"network": "back", "aliases": ["www"]}, state=State.RUNNING)
    db = house.machine("db", "back")
    for machine in (web, db):
        house.link(machine, "back")
    (member,) = house.networks._members(record).values()
    assert member["port"] == f"{web.id}-nic1"
    assert member["names"] == ["web", "web.back", "www", "www.back"]
    assert member["uplink"]
    db.state = State.STARTING
    assert [one["uplink"] for one in house.networks._members(record).values()] == [True, False]


def test_the_agent_gets_the_settings_of_the_cards(house: House) -> None:
    house.networks.create("back", subnet="10.1.0.0/24", mtu=9000)
    web, db = house.machine("web", "uplink", "back"), house.machine("db", "back")
    assert render_links(web.record) == []
    for machine in (web, db):
        house.link(machine, "back")
    (link,) = render_links(web.record)
    assert (link["name"], link["mtu"], link["default"]) == ("nic1", 9000, False)
    assert link["domains"] == ["back", "~0.1.10.in-addr.arpa"]
    assert link["resolver"] == "10.1.0.1"
    assert link["addresses"][0].endswith("/24")
    assert link["addresses"][1].endswith("/64")
    assert render_links(db.record)[0]["default"]
    # The record keeps the addresses.
    again = MachineRecord.model_validate_json(web.record.model_dump_json())
    assert render_links(again) == [link]


def test_records_of_earlier_networks_are_internal(house: House) -> None:
    record = house.networks.create("back")
    data = record.model_dump(mode="json")
    del data["internal"]
    assert NetworkRecord.model_validate(data) == record
    assert record.internal


async def test_the_way_out_is_the_uplink_or_the_first_network_with_one(house: House) -> None:
    house.networks.create("inner", subnet="10.1.0.0/24")
    house.networks.create("dmz", subnet="10.2.0.0/24", internal=False)
    house.networks.create("wan", subnet="10.3.0.0/24", internal=False)
    cases = {
        ("uplink", "inner", "dmz"): None,
        ("inner", "dmz", "wan"): "dmz",
        ("wan", "dmz"): "wan",
        ("inner",): None,
        ("isolated", "dmz"): "dmz",
    }
    for number, (nics, way) in enumerate(cases.items()):
        machine = house.machine(f"m{number}", *nics, state=State.RUNNING)
        networks = {name: house.store.find(name) for name in machine.record.spec.networks}
        for record in networks.values():
            house.networks._choose_addresses(machine.record, record, way_out(machine.record, networks))
        members = [
            (record.name, member)
            for record in networks.values()
            for member in house.networks._members(record).values()
            if member["port"].startswith(machine.id)
        ]
        assert [name for name, member in members if member["gateway"]] == ([way] if way else [])
        leads = way is not None or "uplink" in nics
        # Where names lead outside, the other resolvers leave them alone.
        assert all(member["uplink"] == (leads and not member["gateway"]) for _, member in members)
        links = dict(zip(networks, render_links(machine.record), strict=True))
        assert {name for name, link in links.items() if link["gateways"]} == ({way} if way else set())
        assert {name for name, link in links.items() if link["default"]} == (
            {way} if way else set() if leads else set(networks)
        )
    dmz = house.networks._ways_out(house.store.find("dmz"), Jail(bwrap=None, groups=("/g",)))
    ways = {one.machine_id: one for one in dmz.values()}
    assert set(ways) == {house.machines[1].id, house.machines[4].id}
    one = ways[house.machines[1].id]
    assert one.groups == (f"/g/{one.machine_id}",)
    assert one.addresses[1:4] == ("24", "10.2.0.1", "10.2.0.1")


async def test_a_machine_that_needs_passt_says_so(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    house.networks.create("dmz", internal=False)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(HostLacks, match="passt is not installed"):
        await house.networks.join(house.machine("web", "dmz").record)
