"""The jail with /dev/kvm and nothing more: tests/machines/test_jail.py, with a QEMU that has KVM."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.users("dev", "root")
def test_escapes() -> None:
    argv = [sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", "--timeout", "1200"]
    environment = os.environ | {"BOUGH_TEST_ACCELERATOR": "kvm"}
    environment.pop("BOUGH_TEST_HOME", None)
    done = subprocess.run(
        [*argv, "tests/machines/test_jail.py"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "attempts of a program in the jail, all refused" in done.stdout
