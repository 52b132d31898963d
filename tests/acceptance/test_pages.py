"""What the pages of the documentation show, as they show it."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.acceptance.conftest import BOUGH, Cli

pytestmark = pytest.mark.long

ROOT = Path(__file__).resolve().parents[2]


def blocks(page: Path, language: str) -> list[str]:
    """The code blocks of a page, also those inside a list."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```", page.read_text(), re.MULTILINE | re.DOTALL)
    return [textwrap.dedent(block) for _, block in found]


def test_the_python_of_the_readme_runs(cli: Cli, debian: str, tmp_path: Path) -> None:
    found = blocks(ROOT / "README.md", "python")
    assert found, "the README shows no Python"
    before = cli.names()
    for block in found:
        done = subprocess.run(
            [sys.executable, "-c", block],
            capture_output=True,
            text=True,
            timeout=300,
            cwd=tmp_path,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    assert cli.names() == before


def test_the_tests_of_the_python_page_pass(cli: Cli, debian: str, tmp_path: Path) -> None:
    (found,) = [block for block in blocks(ROOT / "docs" / "python.md", "python") if "def test_" in block]
    (tmp_path / "test_page.py").write_text(found)
    before = cli.names()
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_page.py"],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout
    assert cli.names() == before
    assert cli.json("spares") == []


def test_the_commands_of_the_quick_start_run(cli: Cli, debian: str, tmp_path: Path) -> None:
    """Word for word, in one shell per page, with `bough` on the PATH."""
    script = "\n".join(blocks(ROOT / "docs" / "quickstart.md", "sh"))
    assert "bough " in script
    environment = cli.env | {"PATH": f"{BOUGH.parent}:{cli.env['PATH']}"}
    subprocess.run(
        ["bash", "-euxc", script], check=True, timeout=600, cwd=tmp_path, env=environment, input=b""
    )
    assert cli.names() == [name for name in cli.names() if name in ("box", "bench")]
