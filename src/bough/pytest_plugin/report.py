"""The HTML page of a run: one file, without a network, that shows tests, machines and steps on a timeline.

The page's parts are page.html, page.css and page.js beside this file. The data is JSON inside the page; its
script writes all of it as text, because guests wrote a part of it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest

    from bough.pytest_plugin.options import Options

_PARTS = Path(__file__).parent
_FAILURE_CHARS = 20_000
_SECTION_CHARS = 8_000
#: Order of outcomes: the outcome of a test is the worst of its phases.
_OUTCOMES = ("passed", "skipped", "failed", "error")


class RunReport:
    """Collects the tests of all workers, and writes the page at the end. A plugin of pytest."""

    def __init__(self, options: Options, title: str) -> None:
        self._options = options
        self._title = title
        self._began = time.time()
        self._tests: dict[str, dict[str, Any]] = {}
        self._uses_bough = False

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        test = self._tests.setdefault(report.nodeid, _new_test(report))
        stop = getattr(report, "stop", None) or time.time()
        start = getattr(report, "start", None) or stop - report.duration
        test["phases"].append({"when": report.when, "began": start, "ended": stop})
        test["outcome"] = max(test["outcome"], _outcome(report), key=_OUTCOMES.index)
        if report.failed:
            test["failure"] = (test["failure"] + "\n\n" + report.longreprtext).strip()[-_FAILURE_CHARS:]
            test["sections"] = [[name, text[-_SECTION_CHARS:]] for name, text in report.sections]
        told = getattr(report, "bough", None)
        if isinstance(told, dict):
            self._uses_bough = True
            test |= told

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Write the page, if a test used a machine."""
        if not self._uses_bough:
            return
        path = self._options.report
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(render_page(self.data()), encoding="utf-8", errors="replace")
        except OSError as error:
            terminalreporter.write_line(f"bough: the report cannot be written: {error}", red=True)
        else:
            terminalreporter.write_line(f"bough: report of the run: {path}")

    def data(self) -> dict[str, Any]:
        """Return everything that the page shows, as JSON has it."""
        return {
            "title": self._title,
            "began": self._began,
            "ended": time.time(),
            "processors": os.cpu_count(),
            "tests": list(self._tests.values()),
        }


def render_page(data: dict[str, Any]) -> str:
    """Return the page. Its policy allows this script and this style, and no connection."""
    style = (_PARTS / "page.css").read_text(encoding="utf-8")
    script = (_PARTS / "page.js").read_text(encoding="utf-8")
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_digest(style)}'; script-src '{_digest(script)}'"
    )
    page = (_PARTS / "page.html").read_text(encoding="utf-8")
    # Without "<", no text of a guest can end the element.
    text = json.dumps(data, default=str).replace("<", "\\u003c")
    parts = {"policy": policy, "style": style, "data": text, "script": script}
    # In one pass: a part may contain the mark of another.
    return re.sub("@(policy|style|data|script)@", lambda mark: parts[mark[1]], page)


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _new_test(report: pytest.TestReport) -> dict[str, Any]:
    file, _, name = report.nodeid.partition("::")
    node = getattr(report, "node", None)  # set by xdist
    return {
        "id": report.nodeid,
        "file": file,
        "name": name.replace("::", "."),
        "worker": node.gateway.id if node is not None else "main",
        "outcome": "passed",
        "phases": [],
        "failure": "",
        "sections": [],
        "steps": [],
    }


def _outcome(report: pytest.TestReport) -> str:
    return "error" if report.failed and report.when != "call" else report.outcome
