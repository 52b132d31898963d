"""Real builds from packages. They take minutes and need a mirror, but no virtual machine."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest

from bough.images import disk
from bough.images.build import build
from bough.images.store import ImageStore
from bough.paths import Home
from bough.progress import Progress
from tests.leftovers import processes_of, wait_nothing_left

pytestmark = pytest.mark.skipif(shutil.which("mmdebstrap") is None, reason="mmdebstrap is not installed")

LABEL = "debian:12"


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    home = Home(tmp_path / "home")
    home.create()
    return ImageStore(home)


def sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def check_root(image: Path) -> None:
    where = f"{image}?offset={disk.ROOT_OFFSET}"
    subprocess.run(["/usr/sbin/e2fsck", "-fn", where], check=True, capture_output=True)


async def test_twice_the_same_and_nothing_left(
    store: ImageStore, bough_home: Home, debian: str, tmp_path: Path
) -> None:
    first = ImageStore(bough_home).resolve(debian)
    second = await build(store, LABEL, arch="x86_64")
    again = await build(store, LABEL, arch="x86_64")
    assert again.created == second.created, "it is here: nothing is built"
    if first.packages != second.packages:  # the archive has newer ones than the image of the tests
        bough_home = Home(tmp_path / "other")
        bough_home.create()
        first = await build(ImageStore(bough_home), LABEL, arch="x86_64")
    assert second.digest == first.digest
    assert sha256(store.path(second.digest)) == sha256(bough_home.image(first.digest).disk)
    assert not list(store.home.incoming.iterdir())
    check_root(store.path(second.digest))


async def test_a_cancelled_build_leaves_nothing(store: ImageStore) -> None:
    installing = asyncio.Event()

    def report(progress: Progress) -> None:
        if "installing essential" in progress.detail:
            installing.set()

    task = asyncio.create_task(build(store, LABEL, arch="x86_64", progress=report))
    await installing.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not list(store.home.incoming.iterdir())
    assert not list(store.entries())
    left = wait_nothing_left(lambda: processes_of(store.home))
    assert not left, left
