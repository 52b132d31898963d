"""The tests of KVM, and where they run.

Where /dev/kvm works they run directly. Elsewhere `make test-kvm` runs them in forks of the outer
machine, an emulated machine with KVM inside (outer.py, nested.py). Otherwise they are skipped.
BOUGH_TEST_KVM:
    nested    in forks of the outer machine
    auto      directly if KVM works here, otherwise in forks of the outer machine
    inside    set by outer.py: this process runs in such a fork
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import bough
from bough.errors import BoughError, NotFound
from bough.paths import Home
from bough.qemu.accelerators import Accelerator, probe_accelerators
from bough.qemu.binary import find_qemu
from bough.qemu.jail_probe import probe_jail
from tests.conftest import RUN
from tests.kvm.nested import OUTER, NestedTest, nested
from tests.kvm.outer import IMAGE, Outer, is_possible, outer_home
from tests.kvm.patience import connect
from tests.kvm.prepare import BOOTED, FILES, MEMORY, SMALL, boot_small, import_small, small_files
from tests.kvm.small_guest import SmallGuest, build_small_guest

HERE = Path(__file__).parent
MODE = os.environ.get("BOUGH_TEST_KVM", "")
IS_INSIDE = MODE == "inside"


# -- in forks of the outer machine ----------------------------------------------------------------------


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "users(*names): users of the outer machine that run the test; default: dev"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not is_nested() or not any(is_ours(item) for item in items):
        return
    items[:] = [made for item in items for made in (nested(item) if is_ours(item) else [item])]
    reason = is_possible()
    if reason is None:
        run = config.stash[RUN]
        config.stash[OUTER] = Outer(outer_home(run.root), run.images, lambda text: _say(config, text))
    for item in items:
        if isinstance(item, NestedTest) and reason is not None:
            item.add_marker(pytest.mark.skip(reason=f"the outer machine needs more: {reason}"))


def pytest_unconfigure(config: pytest.Config) -> None:
    if OUTER in config.stash:
        config.stash[OUTER].close()


def _say(config: pytest.Config, text: str) -> None:
    terminal: Any = config.pluginmanager.get_plugin("terminalreporter")
    if terminal is not None:
        terminal.write_line(f"  outer machine: {text}")


def is_nested() -> bool:
    return MODE == "nested" or (MODE == "auto" and not _probe_alone().usable)


def is_ours(item: pytest.Item) -> bool:
    return HERE in item.path.parents


def _probe_alone() -> Accelerator:
    with tempfile.TemporaryDirectory(prefix="bough-kvm-", dir="/var/tmp") as place:
        Path(place).chmod(0o711)
        home = Home.at(Path(place) / "home")
        home.create()
        return asyncio.run(_probe(home))


async def _probe(home: Home) -> Accelerator:
    """Return this host's KVM, as the service finds it."""
    try:
        qemu = find_qemu("x86_64")
        return (await probe_accelerators(qemu, await probe_jail(qemu, home), home))["kvm"]
    except BoughError as error:
        return Accelerator("kvm", False, error.message, "")


# -- where KVM works ------------------------------------------------------------------------------------


@pytest.fixture(scope="session", autouse=True)
def kvm(bough_home: Home) -> Accelerator:
    """Return this host's KVM. Skips the tests where it does not work."""
    found = asyncio.run(_probe(bough_home))
    if not found.usable:
        pytest.skip(f"KVM runs no guest here ({found.detail}); `make test-kvm` brings its own")
    return found


@pytest.fixture(scope="session")
def hv(bough_home: Home) -> Iterator[bough.Hypervisor]:
    """Yield a client of the run's service."""
    hypervisor = connect()
    yield hypervisor
    for machine in hypervisor.machines():
        machine.delete(force=True)


@pytest.fixture(scope="session")
def files(
    hv: bough.Hypervisor, debian: str, bough_home: Home, tmp_path_factory: pytest.TempPathFactory
) -> SmallGuest:
    """Return the files of the small guest: the outer machine has them already."""
    if IS_INSIDE:
        return small_files(FILES)
    digest = next(image.digest for image in hv.images() if IMAGE in image.labels)
    return build_small_guest(bough_home.image(digest).disk, tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="session")
def small(hv: bough.Hypervisor, files: SmallGuest) -> str:
    """Return the image of the small guest."""
    if not any(SMALL in image.labels for image in hv.images()):
        import_small(hv, files)
    return SMALL


@pytest.fixture(scope="session")
def booted(hv: bough.Hypervisor, small: str) -> bough.Snapshot:
    """Return a snapshot of the booted small guest: one vCPU, 256 MiB."""
    try:
        return hv.snapshot(BOOTED)
    except NotFound:
        return boot_small(hv)


@pytest.fixture(scope="session")
def hardware() -> dict[str, Any]:
    """Return the settings of a small machine."""
    return {"vcpus": 1, "memory": MEMORY, "accelerator": "kvm"}


@pytest.fixture
def gone(hv: bough.Hypervisor) -> Iterator[list[bough.Machine]]:
    """Yield a list for machines that the test makes; they are deleted at its end."""
    machines: list[bough.Machine] = []
    yield machines
    for machine in machines:
        machine.discard()


@pytest.fixture(scope="session")
def debian(hv: bough.Hypervisor, request: pytest.FixtureRequest) -> str:
    """Return the label of Debian's image: the outer machine has it already."""
    if not IS_INSIDE:
        return str(request.getfixturevalue("debian"))
    return IMAGE
