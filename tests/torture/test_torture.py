"""Run `make torture` for a minute, in a separate home."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bough.paths import Home

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.long
def test_nothing_is_lost(bough_home: Home, debian: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.torture", "--seconds", "30", "--seed", "20"],
        env=os.environ | {"BOUGH_TEST_CACHE": str(bough_home.root)},
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=580,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-4000:]
    print(done.stdout)
