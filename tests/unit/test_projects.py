"""Projects without machines that run: records, references, and networks of several projects."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bough.errors import Conflict, InUse, NameTaken, NotFound
from bough.hypervisor.network_changes import NetworkChanges
from bough.hypervisor.references import machine_by_role
from bough.machines.record import MachineRecord
from bough.networks.record import NetworkRecord
from bough.paths import Home
from bough.projects.loopback import choose_loopback
from bough.projects.record import ProjectRecord, new_project_id
from bough.projects.store import ProjectStore
from tests.unit.test_networks import House


def project(name: str, *, domain: str | None = None, taken: tuple[str, ...] = ()) -> ProjectRecord:
    project_id = new_project_id()
    return ProjectRecord(
        id=project_id, name=name, domain=domain or name, spec={"name": name},
        loopback=choose_loopback(project_id, taken), created="2020-01-01T00:00:00",
    )  # fmt: skip


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home.at(tmp_path)
    home.create()
    return home


@pytest.fixture
def house(home: Home) -> House:
    return House(home)


# -- records --------------------------------------------------------------------------------------------


def test_records_are_read_again(home: Home) -> None:
    store = ProjectStore(home)
    shop = project("shop")
    store.add(shop)
    changed = store.update(shop, machines={"db": "0" * 12})
    again = ProjectStore(home)
    again.open()
    assert list(again) == [changed]
    assert again.find("shop") == again.find(shop.id) == again.get(shop.id) == changed
    assert again.loopbacks() == {shop.loopback}
    with pytest.raises(NotFound, match="no project is called 'shp'") as error:
        again.find("shp")
    assert error.value.hint == "did you mean 'shop'?"
    again.remove(changed)
    assert list(home.projects.iterdir()) == []


def test_a_damaged_record_keeps_no_other_from_being_used(home: Home) -> None:
    store, shop = ProjectStore(home), project("shop")
    store.add(shop)
    home.project("0" * 12).write_text("{")
    again = ProjectStore(home)
    again.open()
    assert list(again) == [shop]
    with pytest.raises(Conflict, match="cannot be read"):
        again.find("0" * 12)
    assert home.project("0" * 12).exists()


def test_an_update_keeps_what_changed_meanwhile(home: Home) -> None:
    store, shop = ProjectStore(home), project("shop")
    store.add(shop)
    store.update(shop, machines={"db": "1"})
    assert store.update(shop, networks={"back": "2"}).machines == {"db": "1"}


def test_a_loopback_address_is_free_and_of_the_loopback() -> None:
    taken: set[str] = set()
    for _ in range(50):
        address = choose_loopback("shop", taken)
        assert ip_address(address).is_loopback
        assert not address.startswith("127.0.")
        taken.add(address)
    assert len(taken) == 50


def test_records_of_today_have_no_project(house: House) -> None:
    record = house.machine("db", "uplink").record
    old = record.model_dump(mode="json", exclude={"project", "role"})
    read = MachineRecord.model_validate(old)
    assert (read.project, read.role, read.network_name, read.hostname) == (None, None, "db", "db")
    network = house.networks.create("back")
    old = network.model_dump(mode="json", exclude={"domain"})
    assert NetworkRecord.model_validate(old) == network


# -- references -----------------------------------------------------------------------------------------


def machine(name: str, owner: ProjectRecord | None = None, role: str | None = None) -> Any:
    record = SimpleNamespace(name=name, project=owner.id if owner else None, role=role)
    return SimpleNamespace(name=name, record=record)


def test_a_role_names_a_machine_of_its_project(home: Home) -> None:
    store, shop, test = ProjectStore(home), project("shop"), project("test", domain="shop")
    for one in (shop, test):
        store.add(one)
    machines = [
        machine("shop-db", shop, "db"), machine("test-db", test, "db"), machine("shop-web", shop, "web"),
        machine("db-1", shop), machine("alone"),
    ]  # fmt: skip

    def find(reference: str) -> str | None:
        found = machine_by_role(reference, machines, store)
        return found.name if found else None

    assert [find(one) for one in ("db.shop", "db.test", "web", "web.shop", f"db.{shop.id}")] == [
        "shop-db", "test-db", "shop-web", "shop-web", "shop-db",
    ]  # fmt: skip
    assert [find(one) for one in ("db.other", "web.test", "alone", "alone.shop", "db-1.shop")] == [None] * 5
    with pytest.raises(Conflict, match=r"2 projects have a role 'db': db\.shop, db\.test") as error:
        find("db")
    assert error.value.hint == "name the project, too: db.shop"


# -- networks -------------------------------------------------------------------------------------------


def test_projects_have_networks_of_the_same_name(house: House) -> None:
    shop, test = project("shop"), project("test", domain="shop")
    for one in (shop, test):
        house.networks._projects.add(one)
    mine = house.networks.create("back", project=shop, subnet="10.1.0.0/24")
    theirs = house.networks.create("back", project=test, subnet="10.1.0.0/24")
    with pytest.raises(NameTaken):
        house.networks.create("back", project=shop)
    assert house.networks.find("back.shop") == mine
    assert house.networks.find("back.test") == theirs
    assert house.networks.find(mine.id) == mine
    with pytest.raises(Conflict, match=r"2 projects have a network 'back'"):
        house.networks.find("back")
    ours = house.networks.create("back")
    assert house.networks.find("back") == ours
    assert list(house.store.names(shop.id)) == ["back", "back"]
    assert list(house.store.names()) == ["back"]


def test_a_subnet_of_the_home_overlaps_with_no_projects(house: House) -> None:
    house.networks.create("home", subnet="10.1.0.0/24")
    with pytest.raises(Conflict, match="overlaps"):
        house.networks.create("back", project=project("shop"), subnet="10.1.0.0/16")


async def test_a_machine_uses_the_network_of_its_own_project(house: House) -> None:
    shop, test = project("shop"), project("test", domain="shop")
    mine = house.networks.create("back", project=shop)
    theirs = house.networks.create("back", project=test)
    ours = house.networks.create("home")
    db = house.machine("shop-db", "uplink", "back", "home")
    db.record.project, db.record.role = shop.id, "db"
    users = [[one.name for one in house.networks.users(network)] for network in (mine, theirs, ours)]
    assert users == [["shop-db"], [], ["shop-db"]]
    house.networks._choose_addresses(db.record, mine)
    link = db.record.hardware.nics[1].link
    assert link is not None
    assert link.ipv4 in mine.subnet
    assert link.domains == ["back", "shop"]
    told = (await house.networks.describe(mine))["machines"][0]
    assert told["names"] == ["db", "db.back", "db.shop"]
    with pytest.raises(InUse, match="shop-db"):
        await house.networks.delete(mine.id)
    await house.networks.delete(theirs.id)


def test_a_machine_cannot_join_another_project(house: House) -> None:
    shop = project("shop")
    house.networks._projects.add(shop)
    back = house.networks.create("back", project=shop)
    changes = NetworkChanges(house.store, house.networks)
    stranger = house.machine("stranger", "uplink")
    with pytest.raises(Conflict, match="cannot use the network 'back' of another project"):
        changes._find("back", stranger)  # type: ignore[arg-type]
    member = house.machine("shop-db", "uplink")
    member.record = member.record.model_copy(update={"project": shop.id})
    assert changes._find("back", replace(member)) == back  # type: ignore[arg-type]
