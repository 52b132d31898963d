"""`set`: which settings of a machine change when, and the errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from bough.errors import BeyondHost, Conflict, HostLacks, InvalidSpec, WrongState
from bough.hypervisor import machine_settings
from bough.hypervisor.inventory import Inventory
from bough.hypervisor.machine_settings import MachineSettings
from bough.machines.machine import Machine
from bough.machines.nics import NoNetworks
from bough.machines.record import MachineDisk, MachineRecord, Nic, Restarts
from bough.machines.state import State
from bough.paths import Home
from bough.spec import parse_spec
from bough.units import GIB, MIB
from tests.unit.test_machine import Scene

FOREVER = "2999-01-01T00:00:00.000+00:00"


class FakeInventory:
    """Plans every start, or refuses."""

    refuses: Exception | None = None

    def __init__(self) -> None:
        self.planned: list[MachineRecord] = []

    async def plan_of(self, record: MachineRecord, _: object) -> None:
        if self.refuses is not None:
            raise self.refuses
        self.planned.append(record)


class Projects:
    refuses: Conflict | None = None

    def check_settable(self, machine: Machine) -> None:
        if self.refuses is not None:
            raise self.refuses


class House:
    def __init__(self, home: Home, **fields: Any) -> None:
        self.scene = Scene(home, **fields)
        self.machine = self.scene.machine
        self.machine.change(restarts=self.machine.record.restarts)
        self.inventory, self.projects = FakeInventory(), Projects()
        inventory = cast(Inventory, self.inventory)
        self.settings = MachineSettings(home, inventory, NoNetworks(), self.projects)

    async def set(self, force: bool = False, **given: Any) -> list[str]:
        return await self.settings.change(self.machine, given, force=force)

    async def refused(self, error: type[Exception], **given: Any) -> Any:
        """Check that a change is refused as a whole. Return the error."""
        before = self.machine.record
        with pytest.raises(error) as caught:
            await self.set(**given)
        assert self.machine.record == before == MachineRecord.read(self.scene.paths)
        assert self.machine.is_free
        return caught.value

    @property
    def kept(self) -> Any:
        return MachineRecord.read(self.scene.paths).spec


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home.at(tmp_path)


async def test_a_stopped_machine_gets_all_settings_at_once(home: Home) -> None:
    house = House(home)
    changed = await house.set(memory="512MiB", vcpus=1, autostart=True, limits={"cpu": "50%"})
    assert changed == ["vcpus", "memory", "limits", "autostart"]
    kept = house.kept
    assert (kept.memory, kept.vcpus, kept.autostart, kept.limits.cpu) == (512 * MIB, 1, True, 50)
    (planned,) = house.inventory.planned
    assert planned.spec == kept


async def test_the_same_values_change_nothing(home: Home) -> None:
    house = House(home, state=State.RUNNING)
    assert await house.set(memory="1GiB", vcpus=2) == []


async def test_a_limit_is_added_and_removed(home: Home) -> None:
    house = House(home)
    await house.set(limits={"cpu": "50%", "iops": 100})
    await house.set(limits={"iops": None, "disk": "1MiB/s"})
    limits = house.kept.limits
    assert (limits.cpu, limits.iops, limits.disk, limits.console) == (50, None, MIB, MIB)


async def test_cards_are_replaced(home: Home) -> None:
    house = House(home)
    hardware = house.machine.record.hardware
    house.machine.change(hardware=hardware.model_copy(update={"nics": [Nic(mac="52:54:00:00:00:01")]}))
    await house.set(nics=["uplink,model=e1000e"])
    assert house.kept.uplink is True
    (nic,) = house.machine.record.hardware.nics
    assert nic.model == "e1000e"
    await house.set(nics=["isolated"])
    assert house.kept.uplink is False
    assert "no network 'back'" in (await house.refused(InvalidSpec, nics=["back"])).message


@pytest.mark.parametrize("state", [State.RUNNING, State.PAUSED])
async def test_settings_that_need_a_stopped_machine_are_named_together(home: Home, state: State) -> None:
    house = House(home, state=state)
    error = await house.refused(WrongState, memory="512MiB", vcpus=1, autostart=True)
    assert error.message == (
        f"machine 'web' is {state}; vcpus, memory change only while the machine is stopped"
    )
    assert error.hint == "bough stop web"


@pytest.mark.parametrize("state", [State.RUNNING, State.PAUSED, State.SUSPENDED, State.FAILED])
async def test_policies_change_at_any_time(home: Home, state: State) -> None:
    house = House(home, state=state)
    assert await house.set(autostart=True, restart="on-failure") == ["restart", "autostart"]
    assert house.inventory.planned == []


async def test_the_memory_of_a_suspended_machine(home: Home) -> None:
    error = await House(home, state=State.SUSPENDED).refused(WrongState, memory="2GiB")
    assert "saved memory" in error.message
    assert "bough stop --force web" in error.hint


async def test_all_problems_at_once(home: Home) -> None:
    house = House(home)
    error = await house.refused(
        InvalidSpec,
        memroy="1GiB",
        cpu="max",
        users=["ada"],
        ports=["80"],
        disks=["9GiB"],
        image="x:1",
        vcpus=0,
    )
    told = {one["place"]: (one["message"], one["hint"]) for one in error.problems}
    assert told["memroy"][1] == "did you mean 'memory'?"
    assert "same computer" in told["cpu"][0]
    assert told["users"][1] == "change it inside the guest"
    assert told["ports"][1] == "bough port --help"
    assert "began as this image" in told["image"][0]
    assert set(told) == {"memroy", "cpu", "users", "ports", "image", "vcpus"}


async def test_a_limit_below_the_memory(home: Home) -> None:
    house = House(home)
    await house.set(limits={"memory": "2GiB"})
    assert (await house.refused(InvalidSpec, memory="2GiB")).problems[0]["place"] == "limits.memory"


async def test_more_than_the_host_has(home: Home) -> None:
    house = House(home)
    error = await house.refused(BeyondHost, memory="16TiB", vcpus=1)
    assert [one["place"] for one in error.problems] == ["memory"]
    await house.set(memory="16TiB", force=True)
    assert house.kept.memory == 16 * 1024 * GIB
    assert await house.set(autostart=True) == ["autostart"]
    assert await house.set(vcpus=1) == ["vcpus"]


async def test_a_start_that_would_fail_changes_nothing(home: Home) -> None:
    house = House(home)
    house.inventory.refuses = HostLacks("kvm does not work here")
    await house.refused(HostLacks, accelerator="kvm", autostart=True)


async def test_a_machine_of_a_project(home: Home) -> None:
    house = House(home)
    house.projects.refuses = Conflict("a project's")
    await house.refused(Conflict, autostart=True)


async def test_another_operation(home: Home) -> None:
    house = House(home)
    async with house.machine.operation("starting"):
        with pytest.raises(Conflict, match="is starting just now"):
            await house.set(autostart=True)


async def test_a_planned_restart_is_given_up(home: Home) -> None:
    house = House(home, state=State.FAILED, restarts=Restarts(count=1, next=FOREVER, cause="a crash"))
    await house.set(restart="on-failure")
    house.machine.restarter.adopt()
    assert house.machine.restarter.is_pending
    await house.set(restart="no")
    assert not house.machine.restarter.is_pending
    assert house.machine.record.restarts == Restarts(cause="a crash")


async def grow(house: House, monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Give the machine two disks, and note the sizes that they are asked to have."""
    asked: list[list[int]] = []

    async def grow_disks(_: Machine, disks: Any, __: object) -> None:
        asked.append([disk.size_bytes for disk in disks])

    monkeypatch.setattr(machine_settings, "grow_disks", grow_disks)
    spec = parse_spec({"image": "test:1", "disks": ["1GiB,serial=data"]})
    disks = [MachineDisk(file="a", size_bytes=2 * GIB), MachineDisk(file="b", size_bytes=GIB)]
    house.machine.change(spec=spec, disks=disks)
    return asked


async def test_disks_grow_while_the_machine_runs(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    house = House(home, state=State.RUNNING)
    asked = await grow(house, monkeypatch)
    assert await house.set(disk="3GiB", autostart=True) == ["disk", "autostart"]
    assert await house.set(disks=["2GiB,serial=data"]) == ["disks"]
    assert asked == [[3 * GIB, GIB], [3 * GIB, 2 * GIB]]
    assert (house.kept.disk, house.kept.disks[0].size) == (3 * GIB, 2 * GIB)


async def test_disks_that_cannot_grow(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    house = House(home, state=State.RUNNING)
    asked = await grow(house, monkeypatch)
    assert "would shrink" in (await house.refused(InvalidSpec, disk="1GiB")).message
    for disks in ([], ["1GiB,serial=other"], ["2GiB,serial=data", "1GiB"], ["512MiB,serial=data"]):
        assert "only grows" in (await house.refused(InvalidSpec, disks=disks)).message
    assert "disk: " in (await house.refused(BeyondHost, disk="60TiB")).message
    error = await house.refused(WrongState, disk="3GiB", vcpus=1)
    assert (
        "vcpus changes only while the machine is stopped, and disk changes only while it runs"
        in error.message
    )
    house.machine.change(state=State.STOPPED)
    assert (await house.refused(WrongState, disk="3GiB")).hint == "bough start web"
    house.machine.change(state=State.RUNNING)
    house.machine.faults.found["a"] = "a slow disk"
    await house.refused(Conflict, disk="3GiB")
    assert asked == []
