"""No space left on the host at any step of a snapshot or a fork: the request is refused, the machine runs on.

The home is on a separate small file system, which only root can mount.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import bough
from bough.errors import BeyondHost, NoSpace
from bough.paths import Home
from tests.waiting import wait_until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small file system")

SIZE_MIB = 512
#: Free space in KiB, from none to more than enough, so that each step fails at one of the values.
STEPS = (0, 4, 12, 24, 60, 200, 264, 330, 400, 460, 600, 800, 1200, 2500, 5000, 20_000, 40_000)
SMALL = {"memory": "64MiB", "vcpus": 1, "uplink": False, "disk": "8MiB", "disks": [{"size": "8MiB"}]}


@pytest.fixture(scope="module")
def small_home() -> Iterator[Home]:
    root = Path(tempfile.mkdtemp(prefix="bough-full-", dir="/var/tmp"))
    root.chmod(0o711)
    image = root / "blank.raw"
    with image.open("wb") as file:
        file.truncate(4 << 20)
    place = root / "small"
    place.mkdir(mode=0o711)
    disk = root / "small.ext4"
    with disk.open("wb") as file:
        file.truncate(SIZE_MIB << 20)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", "-b", "4096", disk], check=True)
    subprocess.run(["mount", "-o", "loop", disk, place], check=True)
    home = Home.at(place / "home")
    place.chmod(0o711)
    try:
        bough.connect(home.root).import_image(image, name="blank", format="raw")
        yield home
    finally:
        hypervisor = bough.connect(home.root)
        for machine in hypervisor.machines():
            machine.discard()
        hypervisor.shutdown()
        wait_until(
            lambda: subprocess.run(["umount", place], check=False, capture_output=True).returncode == 0
        )
        shutil.rmtree(root)


class Ballast:
    """A file that leaves a given amount of space."""

    def __init__(self, home: Home) -> None:
        self._path = home.root.parent / "ballast"

    def leave(self, free_kib: int) -> None:
        self._path.unlink(missing_ok=True)
        with self._path.open("wb") as file, contextlib.suppress(OSError):
            step = 16 << 20
            while step >= 4096:
                # The file system needs some space for itself, so approach the value in steps.
                while self._free() - step >= free_kib * 1024:
                    size = file.seek(0, os.SEEK_END)
                    os.posix_fallocate(file.fileno(), size, step)
                step //= 4

    def _free(self) -> int:
        info = os.statvfs(self._path.parent)
        return info.f_bavail * info.f_frsize

    def remove(self) -> None:
        self._path.unlink(missing_ok=True)


def bundles(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if ".bough" in path.name)


def findings(hypervisor: bough.Hypervisor) -> list[str]:
    found = hypervisor.doctor_store()["findings"]
    return [f"{each['kind']}: {each['problem']}" for each in found if not each["harmless"]]


@pytest.mark.parametrize("memory", [True, False], ids=["memory", "disks"])
def test_a_snapshot_without_space(small_home: Home, memory: bool) -> None:
    hypervisor = bough.connect(small_home.root)
    ballast = Ballast(small_home)
    machine = hypervisor.create("blank", name=f"full-{memory}".lower(), **SMALL)  # type: ignore[arg-type]
    machine.start(wait=False)
    pid = machine.info().pid
    refused = taken = 0
    try:
        for free in STEPS:
            ballast.leave(free)
            label = f"at-{free}-{memory}".lower()
            try:
                machine.snapshot(label, memory=memory)
                taken += 1
            except NoSpace:
                refused += 1
                assert label not in {snapshot.label for snapshot in hypervisor.snapshots()}
            # The disk is still full.
            info = machine.info()
            assert (info.state, info.pid) == ("running", pid)
            machine.pause()
            machine.resume()
            ballast.remove()
            assert findings(hypervisor) == [], free
        print(f"\n{refused} refused")
        assert refused > 3
        assert taken > 1
        for snapshot in hypervisor.snapshots():
            snapshot.verify()
        machine.stop(force=True)
        machine.start(wait=False)
        assert findings(hypervisor) == []
    finally:
        ballast.remove()
        machine.delete(force=True)
        for snapshot in hypervisor.snapshots():
            snapshot.delete()
    # Forks of the snapshots that were begun ahead are being deleted.
    wait_until(lambda: not list(small_home.snapshots.iterdir()), what="nothing of the snapshots is left")


def test_a_fork_and_the_rest_of_life_without_space(small_home: Home) -> None:
    hypervisor = bough.connect(small_home.root)
    ballast = Ballast(small_home)
    machine = hypervisor.create("blank", name="origin", **SMALL)  # type: ignore[arg-type]
    machine.start(wait=False)
    snapshot = machine.snapshot("origin-point", memory=False)
    refused = made = 0
    try:
        for free in STEPS:
            before = {each.id for each in hypervisor.machines()}
            ballast.leave(free)
            for fork in (lambda: snapshot.fork(cold=True), lambda: machine.fork(cold=True)):
                try:
                    fork().delete()
                    made += 1
                except NoSpace:
                    refused += 1
            assert {each.id for each in hypervisor.machines()} == before
            assert machine.state == "running"
            ballast.remove()
            assert findings(hypervisor) == [], free
        print(f"\n{refused} refused")
        assert refused > 3
        assert made > 1
        ballast.leave(0)
        machine.stop(force=True)
        assert machine.state == "stopped"
        machine.delete()
        snapshot.delete()
    finally:
        ballast.remove()
    assert findings(hypervisor) == []


def test_a_suspend_and_a_bundle_without_space(small_home: Home, tmp_path: Path) -> None:
    hypervisor = bough.connect(small_home.root)
    ballast = Ballast(small_home)
    machine = hypervisor.create("blank", name="sleeper", **SMALL)  # type: ignore[arg-type]
    machine.start(wait=False)
    machine.export(tmp_path / "sleeper.bough")
    place = small_home.root.parent
    refused: Counter[str] = Counter()
    done: Counter[str] = Counter()

    def suspend() -> None:
        machine.suspend()
        assert machine.state == "suspended"
        ballast.remove()
        machine.resume(wait=False)

    def export() -> None:
        machine.export(place / "out.bough")
        (place / "out.bough").unlink()

    def take() -> None:
        hypervisor.import_bundle(tmp_path / "sleeper.bough", name="taken").delete(force=True)

    try:
        for free in (*STEPS, 150_000, 300_000):  # imports and exports leave some space for others
            for act in (suspend, export, take):
                ballast.leave(free)
                before = {each.id for each in hypervisor.machines()}
                try:
                    act()
                    done[act.__name__] += 1
                except (NoSpace, BeyondHost):  # no space, or less than its disks may need
                    refused[act.__name__] += 1
                assert {each.id for each in hypervisor.machines()} == before
                assert machine.state == "running"
                ballast.remove()
                assert bundles(place) == []
                assert findings(hypervisor) == [], (act.__name__, free)
        print(f"\n{dict(refused)} refused, {dict(done)} done")
        assert all(refused[act.__name__] and done[act.__name__] for act in (suspend, export, take))
    finally:
        ballast.remove()
        machine.delete(force=True)
    assert findings(hypervisor) == []
