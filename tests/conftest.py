"""Fixtures of the tests with real machines: one BOUGH_HOME and one service per worker, one image per run.

README.md beside this file explains how to run tests and how to write one. Environment variables:
    BOUGH_TEST_CACHE=/dir   keep the built image there, and use it while its recipe is the same
    BOUGH_TEST_KEEP=1       keep the BOUGH_HOMEs of the run, for inspection
    BOUGH_TEST_LONG=1       run the tests marked as long, too (make test-long)
    BOUGH_TEST_DURATIONS=1  write the durations of the files to durations.json (durations.py)
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from bough.errors import BoughError
from bough.images.agent_disk.store import AgentDiskStore
from bough.images.oci.boot_kit.store import BootKitStore
from bough.machines.plan import host_arch
from bough.paths import Home
from tests.durations import UNKNOWN_S, DurationRecorder, file_of, read_durations
from tests.findings import place_of
from tests.leftovers import find_leftovers, wait_nothing_left
from tests.run import Run

if TYPE_CHECKING:
    import bough

IMAGE = "debian:12"
#: Enough for Debian; a host with 2 cores runs several such machines.
MEMORY = "512MiB"
RUN = pytest.StashKey[Run]()
LONG = "BOUGH_TEST_LONG" in os.environ

# A run below nohup ignores SIGHUP, and a run in a script's background SIGINT. The clients that tests end by
# these signals would inherit that.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


# -- one run, by one process or by several workers ----------------------------------------------------


def pytest_configure(config: pytest.Config) -> None:
    given = getattr(config, "workerinput", {}).get("bough_run")
    config.stash[RUN] = Run(Path(given)) if given else Run.create()
    if not given and "BOUGH_TEST_DURATIONS" in os.environ:
        config.pluginmanager.register(DurationRecorder())


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    node.workerinput["bough_run"] = str(node.config.stash[RUN].root)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """Clean up after the workers. A killed worker (Ctrl-C, -x, a crash) has not cleaned up."""
    if not hasattr(config, "workerinput") and RUN in config.stash:
        config.stash[RUN].end(keep="BOUGH_TEST_KEEP" in os.environ)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip long tests, and order the files: quick ones first, then the longest. So all workers end at about
    the same time. One long file precedes all: it builds the image, while another worker runs the quick tests.
    """
    if not LONG:
        skip = pytest.mark.skip(reason="takes too long for each change: make test-long")
        for item in items:
            if item.get_closest_marker("long"):
                item.add_marker(skip)
    seconds = read_durations()

    def length(item: pytest.Item) -> float:
        return seconds.get(file_of(item.path), UNKNOWN_S)

    builds = max(
        (item for item in items if "debian" in getattr(item, "fixturenames", ())), key=length, default=None
    )

    def rank(item: pytest.Item) -> tuple[bool, bool, float, str]:
        is_first = builds is not None and item.path == builds.path
        return not is_first, item.path.parent.name != "unit", -length(item), str(item.path)

    items.sort(key=rank)


@pytest.fixture(scope="session")
def bough_home(request: pytest.FixtureRequest) -> Iterator[Home]:
    """Yield the BOUGH_HOME of this worker, also set in the environment; nothing of it is left afterwards."""
    worker = getattr(request.config, "workerinput", {}).get("workerid", "main")
    home = request.config.stash[RUN].home(worker)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BOUGH_HOME", str(home.root))
        home.create()
        yield home
        _end_service(home)
    left = wait_nothing_left(lambda: find_leftovers(home, service_may_run=False))
    assert not left, str(left)
    logs = "".join(log.read_text(errors="replace") for log in home.root.glob("service.log*"))
    assert "illegal transition" not in logs, "machines/state.py lacks a transition, see service.log"


@pytest.fixture(scope="session")
def hv(bough_home: Home) -> Iterator[bough.Hypervisor]:
    """Yield a client of the run's service."""
    import bough

    hypervisor = bough.connect()
    yield hypervisor
    for machine in hypervisor.machines():
        machine.delete(force=True)


@pytest.fixture(scope="session")
def debian(hv: bough.Hypervisor, bough_home: Home, request: pytest.FixtureRequest) -> str:
    """Return the label of a built image. The first worker that needs the image builds it for all."""
    store = request.config.stash[RUN].images
    with store.alone():
        store.give(bough_home, IMAGE)
        store.keep(bough_home, hv.build_image(IMAGE).digest, IMAGE)
    return IMAGE


@pytest.fixture(scope="session")
def agent_disk(hv: bough.Hypervisor, bough_home: Home, request: pytest.FixtureRequest) -> Path:
    """Return the file of the agent disk for this host's architecture. The first worker builds it for all."""
    store, disks = request.config.stash[RUN].images, AgentDiskStore(bough_home)
    with store.alone():
        store.share_agent_disks(bough_home)
        digest = asyncio.run(disks.provide(host_arch(), lambda _: None))
        store.share_agent_disks(bough_home)
    return disks.path(host_arch(), digest)


@pytest.fixture(scope="session")
def boot_kit(hv: bough.Hypervisor, bough_home: Home, request: pytest.FixtureRequest) -> Path:
    """Return the boot kit for container images. The first worker builds it for all."""
    store, kits = request.config.stash[RUN].images, BootKitStore(bough_home)
    with store.alone():
        store.share_boot_kits(bough_home)
        kit = asyncio.run(kits.provide(host_arch(), lambda _: None))
        store.share_boot_kits(bough_home)
    return kit.path


@pytest.fixture(scope="session")
def ssh_key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a private key that may log in as root to the shared machine."""
    key = tmp_path_factory.mktemp("ssh") / "key"
    if shutil.which("ssh-keygen") is None:
        pytest.skip("no ssh-keygen on this host")
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    return key


@pytest.fixture(scope="session")
def booted(hv: bough.Hypervisor, debian: str, ssh_key: Path) -> bough.Snapshot:
    """Return a snapshot of an idle Debian of 512 MiB. A fork of it takes a third of a second.

    The machine is a run, so runs of this worker with the same hardware continue from the same boot.
    """
    key = Path(f"{ssh_key}.pub").read_text()
    machine = hv.run(debian, name="booted", memory=MEMORY, ssh_keys=[key])
    machine.wait("booted")
    snapshot = machine.snapshot("booted")
    machine.delete(force=True)
    return snapshot


@pytest.fixture(scope="module")
def vm(booted: bough.Snapshot, request: pytest.FixtureRequest) -> Iterator[bough.Machine]:
    """Yield a running machine that the tests of a module share: leave it running and unchanged."""
    machine = booted.fork(request.module.__name__.rpartition(".")[2].replace("_", "-"))
    yield machine
    machine.delete(force=True)


@pytest.fixture
def fork(booted: bough.Snapshot) -> Iterator[bough.Machine]:
    """Yield a running machine for one test, which may change, stop or break it."""
    machine = booted.fork()
    yield machine
    machine.discard()


@pytest.fixture
def nothing_left(bough_home: Home) -> Iterator[None]:
    """Check that the test leaves no process, mount, socket or file of a deleted machine."""
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
    if report.failed:
        target = place_of(item.nodeid)
        with contextlib.suppress(PermissionError):  # a test may run as another user
            _keep_report(report, target)
            home = getattr(item, "funcargs", {}).get("bough_home")
            if home is not None:
                _keep_artifacts(home, target)
            report.sections.append(("what was kept", str(target)))
    return report


def _keep_report(report: pytest.TestReport, target: Path) -> None:
    """Write the report at once: the terminal shows it after all tests, or never if the run is cut short."""
    target.mkdir(parents=True, exist_ok=True)
    told = "\n".join(f"-- {name}\n{text}" for name, text in report.sections)
    text = f"{report.longreprtext}\n{told}"
    (target / f"{report.when}.txt").write_text(text, errors="backslashreplace")


def _keep_artifacts(home: Home, target: Path) -> None:
    """Keep records, consoles, QEMU's stderr and command lines of all machines, and the service's log."""
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


def _running_argv(machine_id: str) -> str:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            argv = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
            if any(machine_id in word for word in argv):
                found.append(f"# pid {process.name}\n" + "\n  ".join(argv))
    return "\n".join(found)


def _end_service(home: Home) -> None:
    """End the service through its API, if the service still runs."""
    if not home.api_socket.exists():
        return
    code = "import bough.client as c; c.connect(start=False).shutdown()"
    subprocess.run([sys.executable, "-c", code], check=False, timeout=300, capture_output=True)
