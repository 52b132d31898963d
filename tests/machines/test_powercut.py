"""Data that a guest was told is on disk survives a power loss at any moment."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import bough
from bough.paths import Home
from tests.torture.powercut import Recording, judge, record, recording_qemu
from tests.torture.writes import Cut, parse_log

COUNT = int(os.environ.get("BOUGH_POWERCUT_FILES", "16"))
#: Checked moments for each of the two disks; all of them: BOUGH_POWERCUT_CUTS=0.
MOST = int(os.environ.get("BOUGH_POWERCUT_CUTS", "16")) or None

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def recording(debian: str, bough_home: Home) -> Iterator[Recording]:
    # A separate home and service: the service must find another QEMU.
    root = Path(tempfile.mkdtemp(prefix="bough-power-", dir="/var/tmp"))
    root.chmod(0o711)
    home = Home.at(root / "home")
    home.create()
    things = [bough_home.images, bough_home.labels]
    subprocess.run(["cp", "-a", "--link", *things, home.root], check=True)
    kept = root / "kept"
    kept.mkdir()
    try:
        with recording_qemu(root):
            yield record(home, debian, kept, count=COUNT, seed=1)
    finally:
        bough.connect(home.root).shutdown()
        shutil.rmtree(root)


@pytest.mark.parametrize("level", ["guest", "host"])
def test_what_was_acknowledged_is_there(recording: Recording, level: str) -> None:
    verdict = judge(recording, level, most=MOST)
    print(
        f"\n{level}: {verdict.cuts} power cuts, {verdict.flushes} flushes, {verdict.files} files looked for"
    )
    assert verdict.losses == []
    assert verdict.flushes >= COUNT, "not every sync of the guest came down as a flush"
    assert verdict.files > 0


def test_a_loss_would_be_seen(recording: Recording) -> None:
    """Simulate a disk that reports a flush and does not flush: its content is older than its
    acknowledgements.
    """
    from tests.torture import powercut

    writes = parse_log(recording.log("host"))
    barriers = [number for number, write in enumerate(writes) if write.is_barrier]
    middle = barriers[len(barriers) // 2]
    found = powercut._look(
        recording,
        "host",
        recording.log("host"),
        Cut(middle + 1, tuple(writes[: middle + 1])),
        is_formatted=True,
    )
    assert powercut._compare(recording.told.states[-1], [], found) != []
