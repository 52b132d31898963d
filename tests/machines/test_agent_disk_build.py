"""A real build of the agent disk. It needs a mirror, but no virtual machine."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from pathlib import Path

import pytest

from bough.guest.install import agent_modules
from bough.images.agent_disk.recipe import MOST_BYTES, agent_disk_recipe
from bough.images.agent_disk.store import AgentDiskStore
from bough.machines.plan import host_arch
from bough.paths import Home
from bough.progress import Progress
from tests.leftovers import processes_of, wait_nothing_left

pytestmark = pytest.mark.skipif(
    None in map(shutil.which, ("mmdebstrap", "mksquashfs")),
    reason="mmdebstrap or mksquashfs is not installed",
)


@pytest.fixture
def store(tmp_path: Path) -> AgentDiskStore:
    home = Home(tmp_path / "home")
    home.create()
    return AgentDiskStore(home)


async def test_twice_the_same_and_nothing_left(
    store: AgentDiskStore, agent_disk: Path, tmp_path: Path
) -> None:
    told: list[str] = []
    digest = await store.provide(host_arch(), lambda progress: told.append(progress.step))
    built = store.path(host_arch(), digest)
    assert built.name == agent_disk.name, "the same packages give the same bytes"
    assert built.stat().st_size <= MOST_BYTES
    assert "building the agent disk: downloading packages" in told
    assert not list((tmp_path / "home/incoming").iterdir())


def test_each_module_is_there_and_needs_nothing_of_the_host(agent_disk: Path, tmp_path: Path) -> None:
    root = tmp_path / "disk"
    subprocess.run(["unsquashfs", "-q", "-n", "-d", root, agent_disk], check=True)
    modules = [
        *agent_disk_recipe(host_arch()).modules,
        *(name.removesuffix(".py").replace("/", ".") for name in agent_modules() if "__init__" not in name),
    ]
    code = f"import sys; sys.path.insert(0, {str(root / 'lib')!r})\n"
    code += "\n".join(f"import {name}" for name in modules)
    code += """
for line in open("/proc/self/maps"):
    if " r-xp " in line and "/" in line:
        print(line.split()[-1])
"""
    loader = [f"{root}/lib/ld.so", "--inhibit-cache", "--library-path", f"{root}/lib"]
    done = subprocess.run(
        [*loader, f"{root}/bin/python3", "-I", "-S", "-c", code], check=True, capture_output=True, text=True
    )
    assert {str(root)} == {name[: len(str(root))] for name in done.stdout.split()}
    for program, words in (("sshfs", "--version"), ("tar", "--version"), ("sftp-server", "-h")):
        argv = [*loader, f"{root}/bin/{program}", words]
        done = subprocess.run(argv, check=False, capture_output=True, text=True)
        assert program in f"{done.stdout}{done.stderr}".lower()
    applets = subprocess.run([f"{root}/bin/busybox", "--list"], check=True, capture_output=True, text=True)
    assert {link.name for link in (root / "tools").iterdir()} <= set(applets.stdout.split())


async def test_a_cancelled_build_leaves_nothing(store: AgentDiskStore, tmp_path: Path) -> None:
    downloading = asyncio.Event()

    def report(progress: Progress) -> None:
        if "downloading" in progress.step:
            downloading.set()

    task = asyncio.create_task(store.provide(host_arch(), report))
    await asyncio.wait_for(downloading.wait(), 60)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    home = Home(tmp_path / "home")
    assert not list(home.incoming.iterdir())
    assert store.all() == []
    assert not wait_nothing_left(lambda: processes_of(home), timeout_s=10)
