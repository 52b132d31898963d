"""The tests of KVM, and where they run.

Where /dev/kvm works they run directly. Elsewhere `make test-kvm` runs each of them in a fork of the outer
machine, an emulated machine with KVM inside (outer.py). Otherwise they are skipped. BOUGH_TEST_KVM:
    nested    in forks of the outer machine
    auto      directly if KVM works here, otherwise in forks of the outer machine
    inside    set by outer.py: this process runs in such a fork
"""

from __future__ import annotations

import asyncio
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import bough
from bough.errors import BoughError, NotFound
from bough.paths import Home
from bough.qemu.probe import Accelerator, find_qemu, probe_accelerators, probe_jail
from tests.conftest import RUN
from tests.kvm.outer import IMAGE, Outer, is_possible, outer_home
from tests.kvm.patience import connect
from tests.kvm.prepare import BOOTED, MEMORY, SMALL, boot_small, import_small
from tests.kvm.small_guest import SmallGuest, build_small_guest

HERE = Path(__file__).parent
MODE = os.environ.get("BOUGH_TEST_KVM", "")
IS_INSIDE = MODE == "inside"
OUTER = pytest.StashKey[Outer]()
_NESTED_S = 3600


# -- in forks of the outer machine ----------------------------------------------------------------------


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "users(*names): users of the outer machine that run the test; default: dev"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not is_nested() or not any(is_ours(item) for item in items):
        return
    items[:] = [made for item in items for made in (_nested(item) if is_ours(item) else [item])]
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


class NestedFailure(Exception):
    """A test failed in a fork of the outer machine; the text is pytest's output there."""


class NestedTest(pytest.Item):
    """A test that runs in a fork of the outer machine."""

    def __init__(self, *, test: str, user: str, **more: Any) -> None:
        super().__init__(**more)
        self._test, self._user = test, user
        self.add_marker(pytest.mark.timeout(_NESTED_S))

    def runtest(self) -> None:
        done = self.config.stash[OUTER].run(self._test, user=self._user)
        self.add_report_section("call", "inside", done.output)
        print(done.output)
        if done.exit_code != 0:
            raise NestedFailure(done.output)
        skipped = re.findall(r"^SKIPPED \[\d+\] \S+: (.*)$", done.output, re.MULTILINE)
        if re.search(r"^=+ 1 skipped in", done.output, re.MULTILINE):
            pytest.skip(skipped[-1])

    def repr_failure(self, excinfo: Any, style: Any = None) -> Any:
        if isinstance(excinfo.value, NestedFailure):
            return f"failed in a fork of the outer machine, as {self._user}:\n{excinfo.value}"
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> Any:
        return self.path, None, self.name


def _nested(item: pytest.Item) -> list[pytest.Item]:
    marker = item.get_closest_marker("users")
    users = marker.args if marker is not None else ("dev",)
    assert item.parent is not None
    return [
        NestedTest.from_parent(item.parent, name=f"{item.name}-{user}", test=item.nodeid, user=user)
        for user in users
    ]


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
def small(
    hv: bough.Hypervisor, debian: str, bough_home: Home, tmp_path_factory: pytest.TempPathFactory
) -> str:
    """Return the image of the small guest."""
    if not any(SMALL in image.labels for image in hv.images()):
        import_small(hv, small_files(hv, bough_home, tmp_path_factory))
    return SMALL


def small_files(hv: bough.Hypervisor, home: Home, factory: pytest.TempPathFactory) -> SmallGuest:
    digest = next(image.digest for image in hv.images() if IMAGE in image.labels)
    return build_small_guest(home.image(digest).disk, factory.mktemp("small"))


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
