"""The table of states: complete, closed, and drawn in the documentation."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest

from bough.machines.state import LIVE, TRANSITIONS, State, check_transition, is_legal, render_states

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


def test_only_one_place_of_a_machine_replaces_its_record() -> None:
    source = (ROOT / "src/bough/machines/machine.py").read_text()
    assert (
        len(re.findall(r"^ +self\.record = ", source, re.MULTILINE)) == 2
    )  # __init__, and the checked place
