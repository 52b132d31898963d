"""The table of states: complete, closed, and drawn in the documentation."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from bough.machines.state import (
    LIVE,
    TRANSITIONS,
    State,
    check_transition,
    enter_state,
    is_legal,
    render_states,
)

ROOT = Path(__file__).resolve().parents[2]


def test_every_state_can_be_reached_and_left() -> None:
    assert set(TRANSITIONS) == set(State)
    assert {after for causes in TRANSITIONS.values() for after in causes} == set(State)
    assert all(TRANSITIONS.values())


def test_a_machine_gets_a_process_only_by_starting() -> None:
    for before in set(State) - LIVE:
        assert set(TRANSITIONS[before]) & LIVE == {State.STARTING}


def test_a_transition_that_is_not_in_the_table_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        check_transition("aaaaaaaaaaaa", State.STOPPED, State.STOPPED)
        check_transition("aaaaaaaaaaaa", State.STOPPED, State.STARTING)
        assert caplog.text == ""
        check_transition("aaaaaaaaaaaa", State.STOPPED, State.PAUSED)
    assert "illegal transition of machine aaaaaaaaaaaa: stopped to paused" in caplog.text
    assert not is_legal(State.FAILED, State.RUNNING)


def test_the_page_is_made_from_the_table() -> None:
    assert (ROOT / "docs/states.md").read_text() == render_states(), "run `make docs`"


def _places(pattern: str) -> list[str]:
    """Return the files of the service with the pattern, one entry for each match."""
    source = ROOT / "src/bough"
    return [
        str(path.relative_to(source))
        for path in sorted(source.rglob("*.py"))
        if path.relative_to(source).parts[0] not in ("client", "cli", "guest")
        for _ in re.findall(pattern, path.read_text(), re.MULTILINE)
    ]


def test_only_one_place_replaces_the_record_of_a_machine() -> None:
    # __init__, and the place behind `enter_state`. In paths.py `record` is the path of a file.
    places = [file for file in _places(r"\.record = ") if file != "paths.py"]
    assert places == ["machines/record_file.py"] * 2


def test_only_this_file_changes_the_state_of_a_record() -> None:
    assert _places(r"\benter_state\(") == ["machines/record_file.py", "machines/state.py"]
    assert _places(r"\.state = ") == []
    assert _places(r"\"state\": (self\.)?(State\.|state\b)") == ["machines/state.py"]


class Record(BaseModel):
    id: str = "aaaaaaaaaaaa"
    name: str = "web"
    state: State = State.RUNNING


def test_a_record_gets_its_state_and_other_fields_at_once(caplog: pytest.LogCaptureFixture) -> None:
    record = Record()
    with caplog.at_level(logging.ERROR):
        paused = enter_state(record, State.PAUSED, {"name": "db", "state": State.FAILED})
    assert (paused.state, paused.name, record.state) == (State.PAUSED, "db", State.RUNNING)
    assert caplog.text == ""
    with caplog.at_level(logging.ERROR):
        assert enter_state(paused, State.FAILED, {}).state is State.FAILED
        enter_state(record.model_copy(update={"state": State.STOPPED}), State.PAUSED, {})
    assert "illegal transition of machine aaaaaaaaaaaa: stopped to paused" in caplog.text
