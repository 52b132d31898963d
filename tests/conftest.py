"""What the tests with real machines share: one BOUGH_HOME, one image, one service per run.

Settings, as environment variables:
    BOUGH_TEST_CACHE=/dir   keep the built image there, and take it from there while its recipe is the same
    BOUGH_TEST_KEEP=1       leave the BOUGH_HOME of the run in place, to be looked at
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from bough.errors import BoughError
from bough.paths import Home
from tests.leftovers import find_leftovers, wait_nothing_left

if TYPE_CHECKING:
    import bough

ARTIFACTS = Path(__file__).resolve().parents[1] / "test-artifacts"
IMAGE = "debian:12"
#: Enough for Debian, and 2 cores carry several of them.
MEMORY = "512MiB"
ORDER = ("unit", "machines", "acceptance")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What is quick and simple fails first."""

    def rank(item: pytest.Item) -> int:
        folder = item.path.parent.name
        return ORDER.index(folder) if folder in ORDER else len(ORDER)

    items.sort(key=rank)


@pytest.fixture(scope="session")
def bough_home() -> Iterator[Home]:
    """The BOUGH_HOME of this run, also in the environment. Nothing of it is left afterwards.

    Not below pytest's own tmp_path: that is closed to other users, and a jailed QEMU is one.
    """
    root = Path(tempfile.mkdtemp(prefix="bough-test-", dir="/var/tmp"))
    root.chmod(0o711)
    home = Home.at(root / "home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BOUGH_HOME", str(home.root))
        _restore_cache(home)
        yield home
        _end_service(home)
    left = wait_nothing_left(lambda: find_leftovers(home, service_may_run=False))
    _save_cache(home)
    if "BOUGH_TEST_KEEP" not in os.environ:
        shutil.rmtree(root, ignore_errors=True)
        shutil.rmtree(home.runtime, ignore_errors=True)
    assert not left, str(left)


@pytest.fixture(scope="session")
def hv(bough_home: Home) -> Iterator[bough.Hypervisor]:
    """A client of the run's service."""
    import bough

    hypervisor = bough.connect()
    yield hypervisor
    for machine in hypervisor.machines():
        machine.delete(force=True)


@pytest.fixture(scope="session")
def debian(hv: bough.Hypervisor) -> str:
    """The label of an image that is built."""
    hv.build_image(IMAGE)
    return IMAGE


@pytest.fixture(scope="module")
def vm(hv: bough.Hypervisor, debian: str, request: pytest.FixtureRequest) -> Iterator[bough.Machine]:
    """A running machine that the tests of a module share: leave it running and as it was."""
    name = request.module.__name__.rpartition(".")[2].replace("_", "-")
    machine = hv.create(debian, name=name, memory=MEMORY)
    machine.start()
    yield machine
    machine.delete(force=True)


@pytest.fixture
def nothing_left(bough_home: Home) -> Iterator[None]:
    """After the test there is no process, mount, socket or file of a machine that is gone."""
    yield
    left = wait_nothing_left(lambda: find_leftovers(bough_home))
    assert not left, str(left)


# -- a failed test keeps what can explain it ----------------------------------------------------------


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed and call.excinfo is not None and isinstance(call.excinfo.value, BoughError):
        error = call.excinfo.value
        told = [f"hint: {error.hint}", *(f"{name}: {value}" for name, value in error.details.items())]
        report.sections.append(("what the error knows", "\n".join(told)))
    home = getattr(item, "funcargs", {}).get("bough_home")
    if report.failed and home is not None:
        kept = _keep_artifacts(home, item.nodeid)
        report.sections.append(("what was kept", str(kept)))
    return report


def _keep_artifacts(home: Home, test: str) -> Path:
    """Records, consoles, QEMU's stderr and command lines of all machines, and the service's log."""
    target = ARTIFACTS / test.replace("/", ".").replace("::", ".")[-120:]
    target.mkdir(parents=True, exist_ok=True)
    for machine in home.machines.iterdir() if home.machines.exists() else ():
        paths = home.machine(machine.name)
        place = target / machine.name
        place.mkdir(exist_ok=True)
        with contextlib.suppress(OSError):
            shutil.copy2(paths.record, place)
            shutil.copytree(paths.log, place / "log", dirs_exist_ok=True)
            (place / "argv").write_text(_running_argv(machine.name))
    with contextlib.suppress(OSError):
        shutil.copy2(home.service_log, target)
    return target


def _running_argv(machine_id: str) -> str:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            argv = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
            if any(machine_id in word for word in argv):
                found.append(f"# pid {process.name}\n" + "\n  ".join(argv))
    return "\n".join(found)


# -- the image, kept between runs ---------------------------------------------------------------------


def _cache() -> Path | None:
    return Path(os.environ["BOUGH_TEST_CACHE"]) if os.environ.get("BOUGH_TEST_CACHE") else None


def _restore_cache(home: Home) -> None:
    """A store is keyed by what is in it: a build finds an image of the same recipe, and nothing else."""
    home.create()
    cache = _cache()
    if cache is not None and (cache / "images").is_dir():
        _copy_store(cache, home.root)


def _save_cache(home: Home) -> None:
    cache = _cache()
    if cache is not None and home.labels.exists():
        fresh = Path(tempfile.mkdtemp(prefix=".new-", dir=_made(cache)))
        _copy_store(home.root, fresh)
        for name in ("images", "labels.json"):
            old = cache / name
            shutil.rmtree(old) if old.is_dir() else old.unlink(missing_ok=True)
            (fresh / name).rename(old)
        fresh.rmdir()


def _made(directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def _copy_store(source: Path, target: Path) -> None:
    # cp keeps the holes of a disk; shutil would fill them.
    things = [str(source / name) for name in ("images", "labels.json") if (source / name).exists()]
    subprocess.run(
        ["cp", "--archive", "--sparse=always", "--reflink=auto", "--", *things, f"{target}/"], check=True
    )


def _end_service(home: Home) -> None:
    """Ask; a test may have killed it already."""
    if not home.api_socket.exists():
        return
    code = "import bough.client as c; c.connect(start=False).shutdown()"
    subprocess.run([sys.executable, "-c", code], check=False, timeout=30, capture_output=True)
