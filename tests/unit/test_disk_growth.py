"""Disks of running machines grow. QEMU and the agent are small stand-ins with the same answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bough.errors import BeyondHost, InvalidSpec, QmpRefused
from bough.hypervisor.projects.changes import MachineChanges
from bough.machines.disks import growth
from bough.machines.disks.growth import grow_disks, grown_disks
from bough.machines.record import MachineDisk, MachineRecord
from bough.paths import Home
from bough.progress import ignore_progress
from bough.spec import parse_spec
from tests.unit.project_house import ProjectHouse

GIB = 1 << 30


class Qmp:
    def __init__(self, sizes: dict[str, int], *, refuses: bool = False) -> None:
        self.sizes = sizes
        self.refuses = refuses
        self.resized: list[str] = []

    async def query_list(self, command: str, **_: Any) -> list[dict[str, Any]]:
        if command == "query-block":
            return [
                {"qdev": f"/machine/peripheral/{node}-device/virtio-backend", "inserted": {"node-name": node}}
                for node in self.sizes
            ]
        return [
            {"node-name": node, "drv": "qcow2", "file": f"/{node}", "image": {"virtual-size": size}}
            for node, size in self.sizes.items()
        ]

    async def execute(self, command: str, **arguments: Any) -> None:
        assert command == "block_resize"
        if self.refuses:
            raise QmpRefused("busy")
        node = arguments["node-name"]
        assert arguments["size"] > self.sizes[node]
        self.sizes[node] = arguments["size"]
        self.resized.append(node)


class Agent:
    def __init__(self, *, sees_after: int = 1) -> None:
        self.calls = 0
        self._sees_after = sees_after

    async def call(self, operation: str, _: Any, timeout_s: float) -> dict[str, Any]:
        assert operation == "grow_root"
        self.calls += 1
        return {"grown": self.calls >= self._sees_after}


class Machine:
    def __init__(self, record: MachineRecord, qmp: Qmp, agent: Agent | None) -> None:
        self.record = record
        self.chains = self
        self.merging = True
        self._qmp, self._agent = qmp, agent

    async def give_way(self) -> None:
        self.merging = False

    def look(self) -> None:
        self.merging = True

    def qmp(self) -> Any:
        return self._qmp

    def channel(self) -> Any:
        return self._agent

    def change(self, **fields: Any) -> None:
        self.record = self.record.model_copy(update=fields)


@pytest.fixture
def record(tmp_path: Path) -> MachineRecord:
    house = ProjectHouse(tmp_path)
    made = house.machine(house.project("shop"), "db").record
    made.disks = [
        MachineDisk(file=f"{number}.qcow2", size_bytes=size * GIB) for number, size in enumerate((2, 10))
    ]
    return made


def wanted(**settings: Any) -> Any:
    return parse_spec({"image": "debian:12", **settings})


def test_the_sizes_of_a_spec(record: MachineRecord) -> None:
    def sizes(**settings: Any) -> list[int]:
        return [disk.size_bytes // GIB for disk in grown_disks(record, wanted(**settings))]

    assert sizes(disk="4GiB", disks=["10GiB"]) == [4, 10]
    assert sizes(disks=["12GiB"]) == [2, 12]
    assert sizes() == [2, 10]
    with pytest.raises(InvalidSpec, match="disk 0 would shrink from 2 GiB to 1 GiB"):
        sizes(disk="1GiB")


async def test_a_project_grows_no_disk_beyond_the_host(record: MachineRecord, tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.machines.mkdir(parents=True, exist_ok=True)
    changes = MachineChanges(home, None)  # type: ignore[arg-type]
    machine: Any = Machine(record, Qmp({}), None)
    await changes.check_room(machine, wanted())
    with pytest.raises(BeyondHost, match="^disk: 60.0 TiB more requested, the host has .* free$"):
        await changes.check_room(machine, wanted(disk="60TiB"))


async def test_disks_grow_in_qemu_and_in_the_guest(
    record: MachineRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(growth, "_LOOK_S", 0)
    qmp, agent = Qmp({"disk0": 2 * GIB, "disk1": 10 * GIB}), Agent(sees_after=3)
    machine = Machine(record, qmp, agent)
    await grow_disks(machine, grown_disks(record, wanted(disk="4GiB")), ignore_progress)
    assert qmp.resized == ["disk0"]
    assert agent.calls == 3
    assert [disk.size_bytes for disk in machine.record.disks] == [4 * GIB, 10 * GIB]
    assert machine.merging


async def test_a_service_that_was_killed_in_between_is_followed(record: MachineRecord) -> None:
    machine = Machine(record, Qmp({"disk0": 2 * GIB, "disk1": 10 * GIB}, refuses=True), Agent())
    disks = grown_disks(record, wanted(disk="4GiB"))
    with pytest.raises(QmpRefused):
        await grow_disks(machine, disks, ignore_progress)
    assert machine.merging
    qmp = Qmp({"disk0": 2 * GIB, "disk1": 10 * GIB})
    await grow_disks(Machine(machine.record, qmp, None), disks, ignore_progress)
    assert qmp.resized == ["disk0"]
