"""Tests that run in forks of the outer machine.

One fork runs all selected tests of a file for one user of the outer machine. pytest inside writes a report
in JUnit's form. Each test here gets its result from the report.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from tests.kvm.outer import Finished, Outer

OUTER = pytest.StashKey[Outer]()
_RESULTS = pytest.StashKey[dict[tuple[Path, str], "GroupResults"]]()
#: A backstop: inside, each test has its own bound, and output without a pause has another (outer.py).
_GROUP_S = 4 * 3600


class NestedFailure(Exception):
    """A test failed in a fork of the outer machine; the text is pytest's report there."""


@dataclass(frozen=True)
class Result:
    """Result of one test. `kind` is a tag of JUnit's form, or "passed"."""

    kind: str
    text: str
    seconds: float


class GroupResults:
    """Results of the tests of one fork, by the tests' names."""

    def __init__(self, finished: Finished) -> None:
        self._output = finished.output
        self._results = parse_report(finished.report) if finished.report else {}

    def result(self, name: str) -> Result:
        lost = Result("failure", f"pytest wrote no result of the test:\n{self._output[-20_000:]}", 0.0)
        return self._results.get(name, lost)


def parse_report(xml: bytes) -> dict[str, Result]:
    """Return the results in a report of the form of JUnit, by the tests' names."""
    found = {}
    for case in ElementTree.fromstring(xml).iter("testcase"):
        told = [each for each in case if each.tag in ("failure", "error", "skipped")]
        kind = told[0].tag if told else "passed"
        text = "\n".join(f"{each.get('message', '')}\n{each.text or ''}" for each in told)
        found[case.get("name", "")] = Result(kind, text, float(case.get("time", "0")))
    return found


class NestedTest(pytest.Item):
    """A test that runs in a fork of the outer machine, as `user`."""

    def __init__(self, *, test: pytest.Item, user: str, **more: Any) -> None:
        super().__init__(**more)
        self.test_id, self.test_name, self.user = test.nodeid, test.name, user
        self.add_marker(pytest.mark.timeout(_GROUP_S))

    @property
    def group(self) -> tuple[Path, str]:
        return self.path, self.user

    def runtest(self) -> None:
        results = self.session.stash.setdefault(_RESULTS, {})
        if self.group not in results:
            results[self.group] = self._run_group()
        result = results[self.group].result(self.test_name)
        print(f"{result.kind} after {result.seconds:.0f} s inside", end=" ", flush=True)
        if result.kind == "skipped":
            pytest.skip(result.text.strip())
        if result.kind != "passed":
            raise NestedFailure(result.text)

    def _run_group(self) -> GroupResults:
        tests = [item for item in self.session.items if isinstance(item, NestedTest)]
        wanted = [item.test_id for item in tests if item.group == self.group]
        return GroupResults(self.config.stash[OUTER].run(wanted, user=self.user))

    def repr_failure(self, excinfo: Any, style: Any = None) -> Any:
        if isinstance(excinfo.value, NestedFailure):
            return f"failed in a fork of the outer machine, as {self.user}:\n{excinfo.value}"
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> Any:
        return self.path, None, self.name


def nested(item: pytest.Item) -> list[pytest.Item]:
    """Return the test in its nested form, once for each of its users."""
    marker = item.get_closest_marker("users")
    users = marker.args if marker is not None else ("dev",)
    assert item.parent is not None
    return [
        NestedTest.from_parent(item.parent, name=f"{item.name}-{user}", test=item, user=user)
        for user in users
    ]
