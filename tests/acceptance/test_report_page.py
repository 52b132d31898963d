"""The page of a pytest run in a real browser, where the host has one. Needs no guest."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from bough.pytest_plugin.report import render_page

CHROMIUM = shutil.which("chromium")
EVIL = "</script><script>document.title = 'owned'</script><img src=x onerror=\"document.title = 'owned'\">"

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this host")


def step(kind: str, title: str, **more: Any) -> dict[str, Any]:
    given = {"machine": "", "began": 0.2, "ended": 0.5, "status": "", "failed": False, "output": ""}
    return {"kind": kind, "title": title, **given, **more}


def example(name: str, outcome: str, **more: Any) -> dict[str, Any]:
    phases = [{"when": "setup", "began": 0, "ended": 0.3}, {"when": "call", "began": 0.3, "ended": 1}]
    given = {"worker": "gw0", "failure": "", "sections": [], "steps": [], "phases": phases}
    return {"id": f"test_a.py::{name}", "file": "test_a.py", "name": name, "outcome": outcome} | given | more


def dom_of(page: Path) -> str:
    assert CHROMIUM is not None
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=2000", "--dump-dom"]
    command = [CHROMIUM, *options, f"--user-data-dir={page.parent / 'profile'}", page.as_uri()]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout


def test_a_browser_shows_the_run_and_runs_nothing_of_a_guest(tmp_path: Path) -> None:
    steps = [
        step("fork", "fork web"),
        step("command", f"echo {EVIL}", machine="web", output=EVIL, status="exit 3", failed=True),
        step("wait", "wait until TCP port 80 is open", machine="web", status="0"),
    ]
    evidence = {"files": ["web/console.txt"], "directory": "a b"}
    tests = [
        example("test_passes", "passed", steps=steps[:1]),
        example("test_fails", "failed", steps=steps, failure=f"E  {EVIL}", **evidence),
    ]
    data = {"title": EVIL, "began": 0, "ended": 1, "processors": 2, "tests": tests}
    page = tmp_path / "report.html"
    page.write_text(render_page(data))
    dom = dom_of(page)
    assert "owned</title>" not in dom
    assert "<img" not in dom
    assert re.search(r"<h2><span class=\"dot failed\"></span>test_fails</h2>", dom), "the failed test is open"
    assert "2 tests in 1.00 s · 2 forks" in dom
    assert 'href="a%20b/web/console.txt"' in dom
    assert dom.count('class="bar ') == 2 + 3
    assert "exit 3" in dom
