"""Deletion of projects: nothing of them is left, whatever waits on their networks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bough.errors import InUse
from tests.unit.project_house import ProjectHouse


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[ProjectHouse]:
    found = ProjectHouse(tmp_path)
    yield found
    await found.hypervisor.opening.close()


def left(house: ProjectHouse) -> list[str]:
    home = house.home
    return [one.name for place in (home.machines, home.networks, home.projects) for one in place.iterdir()]


async def test_down_deletes_what_waits_on_the_networks(house: ProjectHouse) -> None:
    shop = house.project("shop", "back")
    house.machine(shop, "db", "back")
    house.machine(shop, None, "back", standby=True)
    await house.hypervisor.project_down.down(shop, volumes=True)
    assert left(house) == []


async def test_a_fork_of_a_user_keeps_the_project(house: ProjectHouse) -> None:
    shop = house.project("shop", "back")
    house.machine(shop, "db", "back")
    fork = house.machine(shop, None, "back")
    with pytest.raises(InUse, match=fork.name):
        await house.hypervisor.project_down.down(shop, volumes=True)
    assert len(left(house)) == 4


async def test_a_network_goes_with_the_last_machine_on_it(house: ProjectHouse) -> None:
    shop, other = house.project("shop", "back"), house.project("other", "back")
    waiting = house.machine(shop, None, "back", standby=True)
    house.hypervisor.projects.store.remove(shop)
    await house.hypervisor.lifetimes.delete(waiting)
    for _ in range(100):
        if len(left(house)) == 2:
            break
        await asyncio.sleep(0.01)
    (network,) = house.hypervisor.networks.store
    assert network.project == other.id
