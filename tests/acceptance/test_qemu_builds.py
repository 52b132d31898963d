"""Process images with a build of QEMU that bough was not tested with."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import bough
from bough.forks.process_image.builds import SelfTest, SelfTests, read_build
from bough.paths import Home
from tests.acceptance.conftest import Cli, is_thawed, wait_begun
from tests.torture.processes import kill, service_pid
from tests.waiting import wait_until

pytestmark = pytest.mark.skipif(os.uname().machine != "x86_64", reason="process images exist on x86_64 alone")


@pytest.fixture
def other_build(bough_home: Home, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Start a service that finds another build of QEMU; yield the build's program.

    The build is the host's, which says that it is another package.
    """
    found = shutil.which("qemu-system-x86_64")
    assert found is not None
    folder = bough_home.root.parent / "other-qemu"
    folder.mkdir(mode=0o755)
    content = Path(found).read_bytes()
    version = read_build(found).version.encode()
    package = re.search(rb"\((.*)\)", version)
    assert package is not None, "a QEMU of a distribution"
    program = folder / "qemu-system-x86_64"
    program.write_bytes(content.replace(package[1], package[1][:-2] + b"~~"))
    program.chmod(0o755)
    assert read_build(str(program)).version.endswith("~~)")
    with monkeypatch.context() as patch:
        patch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
        restart(bough_home, cli)
        yield program
    restart(bough_home, cli)
    bough_home.self_tests.unlink(missing_ok=True)
    shutil.rmtree(folder)


def restart(home: Home, cli: Cli) -> None:
    """Start the next service, with the environment of this process."""
    kill(service_pid(home))
    cli.text("list")


def check_of(cli: Cli) -> Any:
    report = cli.json("doctor", check=False)
    return next(check for check in report["checks"] if check["name"] == "process images")


def snapshot_of(booted: bough.Snapshot) -> bough.Snapshot:
    with booted.fork(ephemeral=True) as source:
        return source.snapshot()


def test_a_self_test_precedes_the_first_use(
    other_build: Path, bough_home: Home, cli: Cli, booted: bough.Snapshot
) -> None:
    assert "a self-test precedes the first use" in check_of(cli)["detail"]
    made = snapshot_of(booted)
    wait_begun(bough_home, made.id)
    test = SelfTests(bough_home.self_tests).find(read_build(str(other_build)))
    assert test is not None
    assert test.failure is None
    with made.fork(ephemeral=True) as fork:
        assert is_thawed(bough_home, fork.id)
        assert fork.exec("true").exit_code == 0
    check = check_of(cli)
    assert check["ok"]
    assert "the self-test passed" in check["detail"]
    made.delete()


def test_after_a_failed_self_test_forks_start_qemu(
    other_build: Path, bough_home: Home, cli: Cli, booted: bough.Snapshot
) -> None:
    build = read_build(str(other_build))
    SelfTests(bough_home.self_tests).add(SelfTest(build, "its guest did not answer", time.time()))
    made = snapshot_of(booted)
    log = bough_home.service_log
    wait_until(lambda: "self-test of this QEMU failed" in log.read_text(), what="the pre-warm is given up")
    with made.fork(ephemeral=True) as fork:
        assert not is_thawed(bough_home, fork.id)
        assert fork.exec("true").exit_code == 0
    check = check_of(cli)
    assert not check["ok"]
    assert "their self-test failed" in check["detail"]
    made.delete()
