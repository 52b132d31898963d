"""Replay all inputs that a fuzzer kept, and more inputs from hypothesis (tests/fuzz)."""

from __future__ import annotations

import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bough.cli.output import clean
from tests.fuzz import read_cases
from tests.fuzz.targets import TARGETS


@pytest.mark.parametrize("name", TARGETS)
def test_what_was_found(name: str) -> None:
    cases = read_cases(name)
    assert cases
    for case in cases:
        TARGETS[name](case)


@pytest.mark.parametrize("name", TARGETS)
def test_what_is_made_up(name: str) -> None:
    slow = name in ("channel", "archive")

    @settings(max_examples=30 if slow else 150, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.binary(max_size=600))
    def attack(data: bytes) -> None:
        TARGETS[name](data)

    attack()


@pytest.mark.parametrize("unit", ["\x1b]", "\x1b[1;", "\x1b[", "\x1bP", "\x1b", "\x9b", "\x1b(", "\x1b^x"])
@pytest.mark.parametrize("end", ["", "\nx", "\x07", "\x1b\\"])
def test_a_megabyte_of_beginnings_is_cleaned_at_once(unit: str, end: str) -> None:
    """Clean a megabyte of unfinished escape sequences. `bough logs` took minutes for 64 KiB."""
    started = time.process_time()
    clean(unit * (1_000_000 // len(unit)) + end)
    assert time.process_time() - started < 5
