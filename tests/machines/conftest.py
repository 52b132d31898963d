"""Check every test with a real machine for leftovers.

The module also has a bare machine: a real QEMU in its jail, without an image; the firmware is its only guest.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from bough.paths import Home, MachinePaths
from bough.qemu.binary import find_qemu
from bough.qemu.choice import choose_machine_type
from bough.qemu.jail import machine_uid
from bough.qemu.jail_probe import probe_jail
from bough.qemu.plan import DiskPlan, Layer, Plan
from bough.qemu.process import QemuProcess, find_process
from bough.qemu.process_start import start_process
from bough.qemu.questions import inspect_qemu

IS_ROOT = os.geteuid() == 0
#: tests/kvm runs the tests of the jail once more, with "kvm".
ACCELERATOR: Any = os.environ.get("BOUGH_TEST_ACCELERATOR", "tcg")


@pytest.fixture(autouse=True)
def _nothing_left(request: pytest.FixtureRequest) -> None:
    # Only for tests that use the run's BOUGH_HOME: a test with its own home checks by itself.
    if "bough_home" in request.fixturenames:
        request.getfixturevalue("nothing_left")


@pytest.fixture(scope="module")
def home() -> Iterator[Home]:
    # Not below pytest's own directory, which QEMU's user cannot enter.
    root = Path(tempfile.mkdtemp(prefix="bough-test-", dir="/var/tmp"))
    root.chmod(0o711)
    home = Home.at(root / "home")
    home.create()
    image = home.images / "blank.raw"
    with image.open("wb") as stream:
        stream.truncate(16 << 20)
    image.chmod(0o444)
    yield home
    assert _processes_with(str(root)) == []
    shutil.rmtree(root)


def _processes_with(word: str) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if word in text:
            found.append(text[:200])
    return found


@pytest.fixture
def paths(home: Home, request: pytest.FixtureRequest) -> MachinePaths:
    found = home.machine(f"{abs(hash(request.node.name)):x}"[:8])
    found.root.mkdir(mode=0o711)
    found.disks.mkdir(mode=0o711)
    return found


@pytest.fixture
async def plan(home: Home, paths: MachinePaths) -> Plan:
    qemu = find_qemu("x86_64")
    jail = await probe_jail(qemu, home)
    image = home.images / "blank.raw"
    create = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(image), "-F", "raw", str(paths.disk(0))]
    process = await asyncio.create_subprocess_exec(*create)
    assert await process.wait() == 0
    return Plan(
        machine_id=paths.root.name,
        name="web",
        arch="x86_64",
        qemu=qemu.path,
        accelerator=ACCELERATOR,
        machine_type=choose_machine_type("auto", await inspect_qemu(qemu, home), "x86_64"),
        cpu_model="Nehalem",
        vcpus=1,
        memory_bytes=64 << 20,
        uuid="11111111-2222-4333-8444-555555555555",
        vmgenid="66666666-7777-4888-8999-aaaaaaaaaaaa",
        disks=(DiskPlan("disk0", str(paths.disk(0)), "root", backing=(Layer(str(image), "raw"),)),),
        uid=machine_uid(paths.root.name) if IS_ROOT else None,
        jail=jail,
    )


@pytest.fixture
async def process(plan: Plan, paths: MachinePaths) -> AsyncIterator[QemuProcess]:
    started = await start_process(plan, paths)
    yield started
    started.kill()
    await started.wait()
    assert await find_process(paths) is None
