"""Reports of scripts/test.sh about tests that fail beside others and pass alone."""

from __future__ import annotations

from pathlib import Path

from tests.findings import BESIDE_OTHERS, keep, place_of, tell

RACE, WRONG = "tests/machines/test_a.py::test_race[1]", "tests/unit/test_b.py::test_wrong"


def fail(test: str, artifacts: Path, why: str) -> None:
    place_of(test, artifacts).mkdir(parents=True, exist_ok=True)
    (place_of(test, artifacts) / "call.txt").write_text(why)


def test_a_test_that_passes_alone_is_told_with_what_was_kept(tmp_path: Path) -> None:
    for test in (RACE, WRONG):
        fail(test, tmp_path, "beside others")
    keep([RACE, WRONG], tmp_path)
    fail(WRONG, tmp_path, "alone")
    lines = tell([WRONG], tmp_path)
    assert lines[0].startswith("FINDING: 1 test failed beside others and passed alone")
    place = tmp_path / BESIDE_OTHERS / "tests.machines.test_a.py.test_race[1]"
    assert lines[1:] == [f"  {RACE}", f"    kept: {place}"]
    assert (place / "call.txt").read_text() == "beside others"
    assert (place_of(WRONG, tmp_path) / "call.txt").read_text() == "alone"


def test_nothing_is_told_where_all_failed_again(tmp_path: Path) -> None:
    keep([WRONG], tmp_path)
    assert tell([WRONG], tmp_path) == []


def test_findings_of_an_earlier_run_are_gone(tmp_path: Path) -> None:
    fail(RACE, tmp_path, "long ago")
    keep([RACE], tmp_path)
    keep([WRONG], tmp_path)
    assert tell([], tmp_path)[1:] == [f"  {WRONG}", "    nothing was kept"]
