"""Process images with a build of QEMU that bough was not tested with.

The host's QEMU stands for such a build: a service in this process has an empty list of tested builds.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Callable

import pytest

import bough
from bough.errors import ServiceUnavailable
from bough.forks.process_image.builds import SelfTest, SelfTests, read_build
from bough.hypervisor import Hypervisor
from bough.machines.machine import Machine
from bough.paths import Home
from bough.qemu.binary import find_qemu
from bough.snapshots.store import SnapshotManifest

pytestmark = [
    pytest.mark.skipif(os.uname().machine != "x86_64", reason="process images exist on x86_64 alone"),
    # A self-test uses idle processor time only. Beside other tests there is none.
    pytest.mark.long,
]


@pytest.fixture
async def service(
    hv: bough.Hypervisor, booted: bough.Snapshot, bough_home: Home
) -> AsyncIterator[Hypervisor]:
    """Yield the parts of a service, in place of the worker's service."""
    with contextlib.suppress(ServiceUnavailable):
        hv.shutdown()
    bough_home.self_tests.unlink(missing_ok=True)
    service = Hypervisor(bough_home)
    service.process_images.tested = frozenset()
    await service.opening.open()
    yield service
    await service.opening.close()
    await asyncio.to_thread(bough.connect, bough_home.root)
    bough_home.self_tests.unlink(missing_ok=True)


@pytest.fixture
def tests(bough_home: Home) -> SelfTests:
    return SelfTests(bough_home.self_tests)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(480):  # a pre-warm uses idle processor time only
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.1)


async def fork(service: Hypervisor, snapshot_id: str) -> Machine:
    (made,) = await service.forking.fork(snapshot_id, [None], ephemeral=True)
    assert isinstance(made, Machine), made
    return made


async def take_snapshot(service: Hypervisor, booted: bough.Snapshot) -> SnapshotManifest:
    source = await fork(service, booted.id)
    try:
        return await service.snapshots.take(source)
    finally:
        await service.lifetimes.delete(source, force=True)


async def continues_from_an_image(service: Hypervisor, manifest: SnapshotManifest) -> bool:
    made = await fork(service, manifest.id)
    try:
        await made.wait_ready()
        return made.vm.require_process().has_state
    finally:
        await service.lifetimes.delete(made, force=True)


async def test_a_self_test_precedes_the_first_use(
    service: Hypervisor, booted: bough.Snapshot, tests: SelfTests
) -> None:
    assert "a self-test precedes the first use" in service.process_images.check().detail
    manifest = await take_snapshot(service, booted)
    build = read_build(find_qemu("x86_64").path)
    await until(lambda: tests.find(build) is not None)
    test = tests.find(build)
    assert test is not None
    assert test.failure is None
    assert await continues_from_an_image(service, manifest)
    check = service.process_images.check()
    assert check.ok
    assert "the self-test passed" in check.detail
    service.snapshots.delete(manifest.id)


async def test_after_a_failed_self_test_forks_start_qemu(
    service: Hypervisor, booted: bough.Snapshot, tests: SelfTests, caplog: pytest.LogCaptureFixture
) -> None:
    build = read_build(find_qemu("x86_64").path)
    tests.add(SelfTest(build, "its guest did not answer", time.time()))
    caplog.set_level("INFO", "bough.forks")
    manifest = await take_snapshot(service, booted)
    await until(lambda: "the self-test of this QEMU failed" in caplog.text)
    assert not await continues_from_an_image(service, manifest)
    check = service.process_images.check()
    assert not check.ok
    assert "their self-test failed" in check.detail
    service.snapshots.delete(manifest.id)
