"""The records of projects' snapshots."""

from __future__ import annotations

from pathlib import Path

import pytest

from bough.errors import Conflict, NameTaken, NotFound
from bough.paths import Home
from bough.projects.record import ProjectRecord
from bough.projects.snapshot import ProjectSnapshot, ProjectSnapshotStore

PROJECT = ProjectRecord(
    id="aaaaaaaaaaaa", name="shop", domain="shop", spec={}, loopback="127.1.2.3", created="2026-01-01"
)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path / "home")
    home.create()
    return home


def snapshot(number: int, label: str | None = None) -> ProjectSnapshot:
    return ProjectSnapshot(
        id=f"bbbbbbbbbb{number:02}",
        label=label,
        created=f"2026-01-0{number}",
        project=PROJECT,
        machines={"db": "cccccccccccc"},
    )


def test_records_are_read_again(home: Home) -> None:
    store = ProjectSnapshotStore(home)
    made = [snapshot(2), snapshot(1, "calm")]
    for one in made:
        store.add(one)
    again = ProjectSnapshotStore(home)
    again.open()
    assert list(again) == made[::-1]
    assert made[0].id in again
    assert "dddddddddddd" not in again
    again.remove(made[0])
    store = ProjectSnapshotStore(home)
    store.open()
    assert list(store) == [made[1]]


def test_references(home: Home) -> None:
    store = ProjectSnapshotStore(home)
    calm = snapshot(1, "calm")
    store.add(calm)
    assert store.find("calm") == store.find(calm.id) == store.find("bbbb") == calm
    with pytest.raises(NameTaken, match="labelled 'calm'"):
        store.check_label("calm")
    store.check_label("other")
    store.check_label(None)
    with pytest.raises(NotFound, match="no snapshot of a project is called 'clam'") as told:
        store.find("clam")
    assert told.value.hint == "did you mean 'calm'?"
    store.add(snapshot(2))
    with pytest.raises(Conflict, match="2 snapshot ids match"):
        store.find("bbbb")
    assert store.knows("calm")
    assert not store.knows("storm")


def test_a_damaged_record_keeps_its_parts(home: Home) -> None:
    """The parts of an unknown snapshot are deleted. A damaged record is not unknown."""
    home.project_snapshot("bbbbbbbbbb01").write_text("{")
    store = ProjectSnapshotStore(home)
    store.open()
    assert "bbbbbbbbbb01" in store
    assert list(store) == []
    with pytest.raises(Conflict, match="cannot be read"):
        store.find("bbbbbbbbbb01")
