"""The record of a machine: on disk before in memory, and noted even on a full disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
from pydantic import BaseModel

from bough.errors import NoSpace
from bough.machines.events import Events
from bough.machines.record import MachineRecord
from bough.machines.record_file import RecordFile
from bough.machines.state import State
from bough.paths import Home, MachinePaths


class Record(BaseModel):
    """As much of a record as RecordFile uses."""

    id: str = "aaaaaaaaaaaa"
    name: str = "web"
    state: State = State.STOPPED
    standby: bool = False
    failure: None = None
    full: bool = False

    def write(self, paths: MachinePaths) -> None:
        if self.full:
            raise NoSpace("the disk is full")


class Told(Events):
    def __init__(self) -> None:
        super().__init__()
        self.kinds: list[str] = []

    def emit(self, kind: str, **_: Any) -> None:
        self.kinds.append(kind)


def make(tmp_path: Path, **fields: Any) -> tuple[RecordFile, Told]:
    told = Told()
    record = cast(MachineRecord, Record(**fields))
    return RecordFile(record, Home.at(tmp_path).machine("aaaaaaaaaaaa"), told), told


def test_a_change_of_state_is_told(tmp_path: Path) -> None:
    file, told = make(tmp_path)
    file.change(state=State.STARTING)
    file.change(name="db")
    file.change(event=False, state=State.RUNNING)
    assert (file.record.state, file.record.name, told.kinds) == (State.RUNNING, "db", ["starting"])


def test_a_change_that_cannot_be_written_changes_nothing(tmp_path: Path) -> None:
    file, told = make(tmp_path)
    before = file.record
    with pytest.raises(NoSpace):
        file.change(state=State.STARTING, full=True)
    assert (file.record, told.kinds) == (before, [])


def test_a_fact_about_qemu_counts_although_the_disk_is_full(tmp_path: Path) -> None:
    file, told = make(tmp_path, state=State.RUNNING)
    assert not file.note(state=State.FAILED, full=True)
    assert (file.record.state, told.kinds) == (State.FAILED, ["failed"])
    assert file.note(full=False)


def test_nothing_is_told_of_a_standby_machine(tmp_path: Path) -> None:
    file, told = make(tmp_path, standby=True)
    file.change(state=State.STARTING)
    file.tell("agent-answers")
    assert told.kinds == []
