"""The tests of the examples pass: whole systems that are forked, broken and healed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bough.paths import Home

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("system", ["keepalived", "etcd", "shop"])
def test_the_tests_of_a_system(bough_home: Home, debian: str, system: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", EXAMPLES / system],
        cwd=bough_home.root, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
