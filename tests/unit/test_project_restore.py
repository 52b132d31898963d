"""A restore of a project that is killed at any step: the next service completes it by itself.

The machines, their disks and their saved memory are small stand-ins. The use case, the notes and the records
of projects are real. A kill is an exception that no clean-up of the service handles.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bough.errors import MachineFailed, NotFound
from bough.hypervisor.projects.branches import ProjectBranches
from bough.hypervisor.projects.operations import ProjectOperations
from bough.machines.state import State
from bough.paths import Home
from bough.projects.record import ProjectRecord
from bough.projects.restore_notes import RestoreNotes
from bough.projects.store import ProjectStore
from tests.unit.test_projects import project

ROLES = ("db", "app", "web")


class Killed(BaseException):
    """The service is killed."""


class Disk:
    """What a kill leaves: role -> content of the disk, and whether the machine runs."""

    def __init__(self) -> None:
        self.content = dict.fromkeys(ROLES, "present")
        self.runs = dict.fromkeys(ROLES, True)


class Service:
    """A service, which is killed before its step number `lives`."""

    def __init__(self, home: Home, disk: Disk, lives: int = 1000) -> None:
        self.disk, self.lives, self.steps = disk, lives, 0
        self.fails = False
        self.snapshots = ["calm"]
        self.machines = {role: Machine(self, role) for role in ROLES}
        store = ProjectStore(home)
        store.open()
        self.branches = ProjectBranches(
            SimpleNamespace(store=store, machines=lambda _: self.machines),  # type: ignore[arg-type]
            SimpleNamespace(  # type: ignore[arg-type]
                store=SimpleNamespace(find=self.find),
                parts_of=lambda _: dict.fromkeys(ROLES, "calm"),
                used=lambda _: contextlib.nullcontext(),
            ),
            ProjectOperations(),
            SimpleNamespace(),  # type: ignore[arg-type]
            SimpleNamespace(check_own=lambda *_: None, put_back=self.put_back),  # type: ignore[arg-type]
            SimpleNamespace(get=self.state_of),  # type: ignore[arg-type]
            RestoreNotes(home),
            lambda: None,
        )

    def step(self) -> None:
        self.steps += 1
        if self.steps >= self.lives:
            raise Killed

    def find(self, reference: str) -> Any:
        if reference not in self.snapshots:
            raise NotFound(f"no snapshot {reference}")
        return SimpleNamespace(id=reference, name=reference, project=RECORD)

    async def state_of(self, part: str) -> str:
        return part

    async def put_back(self, machine: Machine, part: str) -> None:
        self.step()
        assert machine.state is State.STOPPED
        self.disk.content[machine.role] = part

    async def complete(self) -> None:
        """Do what a service does at its start."""
        self.branches.open()
        for task in list(self.branches._tasks._tasks):
            await task


class Machine:
    def __init__(self, service: Service, role: str) -> None:
        self._service, self.role = service, role
        self.state = State.RUNNING if service.disk.runs[role] else State.STOPPED

    @contextlib.contextmanager
    def claim(self, _: str) -> Iterator[None]:
        yield

    async def stop(self, *, force: bool) -> None:
        self._service.step()
        self._service.disk.runs[self.role] = False
        self.state = State.STOPPED

    async def start(self, _: Any, *, saved: str) -> None:
        self._service.step()
        if self._service.fails:
            raise MachineFailed("no start")
        assert self._service.disk.content[self.role] == saved
        self._service.disk.runs[self.role] = True
        self.state = State.RUNNING

    async def wait_ready(self, *, report: Any) -> None:
        self._service.step()


RECORD = project("shop")


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home.at(tmp_path)
    home.create()
    ProjectStore(home).add(RECORD)
    return home


def notes(home: Home) -> list[Path]:
    return list(home.projects.glob("*.restore"))


async def restore(service: Service, record: ProjectRecord = RECORD) -> None:
    await service.branches.restore(record, "calm")


async def test_a_restore(home: Home) -> None:
    disk = Disk()
    service = Service(home, disk)
    await restore(service)
    assert set(disk.content.values()) == {"calm"}
    assert all(disk.runs.values())
    assert service.steps == 4 * len(ROLES)
    assert notes(home) == []


@pytest.mark.parametrize("first", range(1, 4 * len(ROLES) + 1))
@pytest.mark.parametrize("second", [1, 3, 6, 1000])
async def test_a_service_killed_at_any_step_is_followed(home: Home, first: int, second: int) -> None:
    disk = Disk()
    with pytest.raises(Killed):
        await restore(Service(home, disk, first))
    with contextlib.suppress(Killed):
        await Service(home, disk, second).complete()
    await Service(home, disk).complete()
    assert set(disk.content.values()) == {"calm"}
    assert all(disk.runs.values())
    assert notes(home) == []
    last = Service(home, disk)
    await last.complete()
    assert last.steps == 0


async def test_an_error_ends_the_restore(home: Home) -> None:
    disk = Disk()
    service = Service(home, disk)
    service.fails = True
    with pytest.raises(MachineFailed):
        await restore(service)
    assert notes(home) == []


async def test_a_snapshot_that_is_gone_ends_the_restore(home: Home) -> None:
    disk = Disk()
    with pytest.raises(Killed):
        await restore(Service(home, disk, 5))
    service = Service(home, disk)
    service.snapshots = []
    await service.complete()
    assert notes(home) == []


async def test_the_note_of_a_deleted_project_is_removed(home: Home) -> None:
    RestoreNotes(home).write("0" * 12, "calm")
    await Service(home, Disk()).complete()
    assert notes(home) == []
