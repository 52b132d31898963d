"""What `up` would do, compared with machines and networks that exist. No machine runs."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bough.errors import Conflict, InvalidSpec
from bough.hypervisor.networks import Networks
from bough.hypervisor.projects.networks import ProjectNetworks
from bough.hypervisor.projects.plan import ProjectPlanner, Wish, write_applied
from bough.hypervisor.projects.registry import Projects
from bough.hypervisor.projects.specs import machine_spec
from bough.machines.events import Events
from bough.machines.record import MachineDisk
from bough.machines.state import State
from bough.paths import Home
from bough.projects.record import ProjectRecord
from bough.projects.store import ProjectStore
from bough.spec.project.order import choose_roles
from bough.spec.project.parse import parse_project
from tests.unit.test_networks import House, Stub
from tests.unit.test_projects import project

SHOP: dict[str, Any] = {
    "name": "shop",
    "networks": {"back": {}},
    "machines": {
        "db": {"image": "debian:12", "networks": ["back"]},
        "web": {"image": "debian:12", "networks": ["back"], "depends_on": ["db"]},
    },
}


class Machines(list[Stub]):
    """An inventory."""

    unreadable: dict[str, str] = {}  # noqa: RUF012

    def machines_of(self, project_id: str) -> list[Stub]:
        return [one for one in self if one.record.project == project_id]

    def present(self) -> Iterator[Stub]:
        return iter(self)


class Shop:
    """A project whose machines are made without QEMU."""

    def __init__(self, home: Home) -> None:
        self.house = House(home)
        self.house.machines = self.machines = Machines()
        store = ProjectStore(home)
        self.house.networks = Networks(home, Events(), self.house.store, self.machines, store)  # type: ignore[arg-type]
        self.projects = Projects(store, self.machines, self.house.store)  # type: ignore[arg-type]
        self.networks = ProjectNetworks(self.projects, self.house.networks)
        self.planner = ProjectPlanner(self.projects, self.networks, self.machines)  # type: ignore[arg-type]
        self.record = project("shop")
        store.add(self.record)

    def wish(self, data: dict[str, Any], **how: Any) -> Wish:
        spec = parse_project(data)
        return Wish(spec, "shop", choose_roles(spec), **how)

    async def up(self, data: dict[str, Any], state: State = State.RUNNING) -> None:
        """Make all that the file names."""
        spec = parse_project(data)
        await self.networks.make(self.record, spec)
        for role, wanted in spec.machines.items():
            made = self.house.machine(
                f"shop-{role}", *(card.network for card in wanted.spec.nics), state=state
            )
            made.record.project, made.record.role = self.record.id, role
        applied = {role: write_applied(machine) for role, machine in spec.machines.items()}
        self.record = self.projects.store.update(self.record, applied=applied)
        self.record = self.projects.settle(self.record)

    def plan(self, data: dict[str, Any], **how: Any) -> dict[str, str]:
        return {step.name: step.action for step in self.planner.plan(self.wish(data, **how), self.record)}

    def refused(self, data: dict[str, Any], **how: Any) -> list[tuple[str, str]]:
        with pytest.raises(InvalidSpec) as error:
            self.plan(data, **how)
        return [(one["place"], one["message"]) for one in error.value.problems]


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    home = Home.at(tmp_path)
    home.create()
    return Shop(home)


def changed(**db: Any) -> dict[str, Any]:
    return {**SHOP, "machines": {**SHOP["machines"], "db": {**SHOP["machines"]["db"], **db}}}


async def test_a_project_that_is_as_its_file_says_needs_nothing(shop: Shop) -> None:
    assert shop.plan(SHOP) == {"back": "create", "db": "create", "web": "create"}
    await shop.up(SHOP)
    assert shop.plan(SHOP) == {"back": "keep", "db": "keep", "web": "keep"}
    assert set(shop.record.machines) == {"db", "web"}
    assert set(shop.record.networks) == {"back"}
    for machine in shop.machines:
        machine.state = State.STOPPED
    assert shop.plan(SHOP) == {"back": "keep", "db": "start", "web": "start"}


@pytest.mark.parametrize(
    ("settings", "action"),
    [
        ({"memory": "2GiB"}, "restart"),
        ({"networks": []}, "restart"),
        ({"ports": ["0:5432"]}, "change"),
        ({"healthcheck": {"port": 5432}}, "keep"),
        ({"disk": "30GiB"}, "change"),
    ],
)
async def test_only_the_machine_that_changed_changes(
    shop: Shop, settings: dict[str, Any], action: str
) -> None:
    await shop.up(SHOP)
    assert shop.plan(changed(**settings)) == {"back": "keep", "db": action, "web": "keep"}


async def test_a_change_that_would_lose_a_disk_is_refused(shop: Shop) -> None:
    await shop.up(changed(disk="20GiB"))
    new = changed(disk="20GiB", commands=["true"])
    (place, message) = shop.refused(new)[0]
    assert (place, "its disks would be lost" in message) == ("machines.db", True)
    assert shop.plan(new, recreate=True)["db"] == "recreate"
    assert shop.refused(changed(disk="10GiB")) == [
        ("machines.db.disk", "the disk would shrink from 20 GiB to 10 GiB")
    ]
    assert shop.plan(changed(disk="10GiB"), recreate=True)["db"] == "recreate"


async def test_disks_grow_and_are_not_replaced(shop: Shop) -> None:
    await shop.up(changed(disks=["1GiB"]))
    shop.machines[0].record.disks = [
        MachineDisk(file=f"{number}.qcow2", size_bytes=size << 30) for number, size in enumerate((2, 1))
    ]
    assert shop.plan(changed(disk="3GiB", disks=["4GiB"]))["db"] == "change"
    assert shop.refused(changed(disk="1GiB", disks=["1GiB"])) == [
        ("machines.db.disk", "disk 0 would shrink from 2 GiB to 1 GiB")
    ]
    for disks in ([], ["1GiB", "1GiB"], [{"size": "1GiB", "serial": "other"}]):
        assert shop.refused(changed(disks=disks))[0][0] == "machines.db"


async def test_a_machine_that_the_file_does_not_name_any_more_is_left(shop: Shop) -> None:
    await shop.up(SHOP)
    alone = {**SHOP, "machines": {"db": SHOP["machines"]["db"]}}
    assert shop.plan(alone) == {"back": "keep", "db": "keep", "web": "leave"}
    assert shop.plan(alone, remove_orphans=True)["web"] == "delete"


async def test_all_that_is_taken_is_told_at_once(shop: Shop) -> None:
    shop.house.machine("shop-web", "uplink")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        places = [place for place, _ in shop.refused(changed(ports=[f"127.0.0.1:{port}:5432"]))]
    assert places == ["machines.db.ports[0]", "machines.web"]


async def test_a_network_changes_only_while_no_machine_runs_on_it(shop: Shop) -> None:
    await shop.up(SHOP)
    moved = {**SHOP, "networks": {"back": {"subnet": "10.77.0.0/16"}}}
    with pytest.raises(Conflict, match="the file changes subnet of network 'back', and shop-db runs on it"):
        shop.plan(moved)
    for machine in shop.machines:
        machine.state = State.STOPPED
    assert shop.plan(moved)["back"] == "change"
    await shop.networks.make(shop.record, parse_project(moved))
    assert str(shop.networks.of(shop.record)["back"].subnet) == "10.77.0.0/16"
    assert shop.plan(moved)["back"] == "keep"


async def test_a_damaged_machine_is_not_made_again(shop: Shop) -> None:
    await shop.up(SHOP)
    machine_id = shop.record.machines["db"]
    shop.machines[:] = [one for one in shop.machines if one.id != machine_id]
    shop.machines.unreadable = {machine_id: "not JSON"}
    shop.record = shop.projects.settle(shop.record)
    assert shop.record.machines["db"] == machine_id
    assert shop.refused(SHOP) == [("machines.db", f"the record of its machine {machine_id} cannot be read")]


async def test_networks_that_no_file_names_are_deleted_when_unused(shop: Shop) -> None:
    await shop.up(SHOP)
    other = {
        "name": "shop",
        "networks": {"front": {}},
        "machines": {"db": {"image": "debian:12", "networks": ["front"]}},
    }
    await shop.networks.make(shop.record, parse_project(other))
    await shop.networks.delete_unused(shop.record, parse_project(other))
    assert set(shop.networks.of(shop.record)) == {"back", "front"}  # machines are still on `back`
    shop.machines.clear()
    await shop.networks.delete_unused(shop.record, None)
    assert shop.networks.of(shop.record) == {}


def test_addresses_derive_from_the_project(shop: Shop) -> None:
    spec = parse_project(changed(ports=["5432:5432", "0.0.0.0:80:80"]))
    test = ProjectRecord.model_validate({**project("other", domain="shop").model_dump()})
    specs = [machine_spec(record, "db", spec.machines["db"]) for record in (shop.record, test)]
    assert specs[0].nics[0].mac is None  # the uplink's card
    assert specs[0].nics[1].mac is not None
    assert specs[0].nics[1].mac == specs[1].nics[1].mac
    assert [port.host for port in specs[0].ports] == [shop.record.loopback, "0.0.0.0"]
