"""Results of the tests that run in a fork of the outer machine (tests/kvm)."""

from __future__ import annotations

from tests.kvm.nested import GroupResults, parse_report
from tests.kvm.outer import Finished

_REPORT = b"""<?xml version="1.0"?>
<testsuites><testsuite name="pytest">
  <testcase classname="tests.kvm.test_state" name="test_clock" time="61.5"/>
  <testcase classname="tests.kvm.test_state" name="test_kills[1]" time="2"><failure message="assert 1 == 2">trace</failure></testcase>
  <testcase classname="tests.kvm.test_state" name="test_perf" time="0"><skipped message="no perf on this host"/></testcase>
</testsuite></testsuites>"""  # noqa: E501


def test_each_test_finds_its_result() -> None:
    found = parse_report(_REPORT)
    assert {name: result.kind for name, result in found.items()} == {
        "test_clock": "passed",
        "test_kills[1]": "failure",
        "test_perf": "skipped",
    }
    assert found["test_clock"].seconds == 61.5
    assert "assert 1 == 2" in found["test_kills[1]"].text
    assert "no perf" in found["test_perf"].text


def test_a_test_without_a_result_has_failed_with_the_output() -> None:
    results = GroupResults(Finished("Killed\n", None))
    assert results.result("test_clock").kind == "failure"
    assert "Killed" in results.result("test_clock").text
    assert GroupResults(Finished("", _REPORT)).result("test_lost").kind == "failure"
