"""Seconds that each file of tests took, so that the files that take longest start first.

`BOUGH_TEST_DURATIONS=1 make test` measures again and writes durations.json beside this file. Only the order
of the files depends on the table, so old figures do no harm.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent
TABLE = ROOT / "durations.json"
#: For a file that is not in the table yet.
UNKNOWN_S = 30.0


def read_durations() -> dict[str, float]:
    """Return seconds by file, as "machines/test_jail.py"."""
    found: dict[str, float] = json.loads(TABLE.read_text())
    return found


def file_of(path: Path) -> str:
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name


class DurationRecorder:
    """A plugin of pytest that writes the table after a run; files that did not run keep their figures."""

    def __init__(self) -> None:
        self._seconds: Counter[str] = Counter()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        file = report.nodeid.partition("::")[0].removeprefix("tests/")
        if not file.startswith("unit/"):
            self._seconds[file] += report.duration  # type: ignore[assignment]

    def pytest_sessionfinish(self) -> None:
        table = read_durations() | {file: round(seconds) for file, seconds in self._seconds.items()}
        there = {file: table[file] for file in sorted(table) if (ROOT / file).exists()}
        TABLE.write_text(json.dumps(there, indent=1) + "\n")
