"""A run of the tests: a directory with a BOUGH_HOME per worker, and the image that they share.

/var/tmp/bough-test-<random>/<worker>/home    not below pytest's own tmp_path: that is closed to other
                                              users, and a jailed QEMU is one
$BOUGH_TEST_CACHE, or .../store               images/<digest>/, labels.json, agent-disks/, boot-kits/, lock
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bough.images.recipes import recipe_for
from bough.images.store import ImageStore
from bough.machines.plan import host_arch
from bough.paths import Home
from tests.leftovers import processes_of, wait_nothing_left

KILL_ROUNDS = 5


@dataclass(frozen=True)
class Images:
    """Built images, kept for other workers and for the next run."""

    root: Path

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Exclude other workers, and other runs with the same cache."""
        self.root.mkdir(mode=0o711, parents=True, exist_ok=True)
        with (self.root / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def give(self, home: Home, label: str) -> None:
        """Copy a kept image of the present recipe into `home`, under its label, so that a build finds the
        image.
        """
        recipe = recipe_for(label, host_arch()).digest()
        for image in self._kept():
            if json.loads((image / "image.json").read_bytes())["recipe"] == recipe:
                _copy(image, home.images)
                ImageStore(home).label(image.name, label)

    def keep(self, home: Home, digest: str, label: str) -> None:
        """Keep this image instead of earlier ones."""
        if (self.root / "images" / digest / "image.json").exists():
            return
        for old in self._kept():
            shutil.rmtree(old)
        with tempfile.TemporaryDirectory(prefix=".new-", dir=self.root) as fresh:
            _copy(home.image(digest).root, Path(fresh))
            (self.root / "images").mkdir(mode=0o711, exist_ok=True)
            (Path(fresh) / digest).rename(self.root / "images" / digest)
        (self.root / "labels.json").write_text(json.dumps({label: digest}))

    def share_agent_disks(self, home: Home) -> None:
        """Copy agent disks between the store and `home`, to whichever has none."""
        self._share(home.agent_disk_keys)

    def share_boot_kits(self, home: Home) -> None:
        """Copy boot kits between the store and `home`, to whichever has none."""
        self._share(home.boot_kit_keys)

    def _share(self, keys: Path) -> None:
        ours, kept = keys.parent, self.root / keys.parent.name
        for source, target in ((kept, ours), (ours, kept)):
            if source.is_dir() and not (target / keys.name).exists():
                shutil.copytree(source, target, dirs_exist_ok=True)

    def _kept(self) -> list[Path]:
        return [path.parent for path in self.root.glob("images/*/image.json")]


def _copy(image: Path, target: Path) -> None:
    # cp keeps the holes of a disk; shutil would fill them.
    if not (target / image.name).exists():
        subprocess.run(
            ["cp", "--archive", "--sparse=always", "--reflink=auto", "--", image, f"{target}/"], check=True
        )


@dataclass(frozen=True)
class Run:
    root: Path

    @classmethod
    def create(cls) -> Run:
        root = Path(tempfile.mkdtemp(prefix="bough-test-", dir="/var/tmp"))
        root.chmod(0o711)
        return cls(root)

    @property
    def images(self) -> Images:
        return Images(Path(os.environ.get("BOUGH_TEST_CACHE") or self.root / "store"))

    def home(self, worker: str) -> Home:
        given = os.environ.get("BOUGH_TEST_HOME")  # a prepared one, of tests/kvm
        if given:
            return Home.at(Path(given))
        place = self.root / worker
        place.mkdir(mode=0o711, exist_ok=True)
        return Home.at(place / "home")

    def end(self, *, keep: bool) -> None:
        """End everything after all workers, also processes of a killed worker."""
        homes = [Home.at(path) for path in self.root.glob("*/home")]
        for home in homes:
            kill_all(home)
        if not keep:
            shutil.rmtree(self.root, ignore_errors=True)


def kill_all(home: Home) -> None:
    """Kill all processes of `home`. The service is first: it would take the end of a QEMU for a failure."""

    def look() -> list[tuple[int, str]]:
        return sorted(processes_of(home), key=lambda each: "bough.service" not in each[1])

    for _ in range(KILL_ROUNDS):  # a killed process may have just started another
        for pid, _text in look():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if not wait_nothing_left(look, timeout_s=2):
            return
