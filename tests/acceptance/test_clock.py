"""The guest's clock is the host's plus the machine's offset, after anything that stopped its vCPUs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import bough
from tests.acceptance.conftest import Cli
from tests.conftest import MEMORY
from tests.waiting import wait_until

WEEK_S = 7 * 86400.0
PROMISED_S = 0.1
HELD_S = 3.0


@pytest.fixture(scope="module")
def late(hv: bough.Hypervisor, debian: str) -> Iterator[bough.Machine]:
    """Yield a machine whose clock is a week behind."""
    machine = hv.create(debian, name="late", memory=MEMORY, clock="-7d")
    machine.start(until="booted")
    yield machine
    machine.delete(force=True)


def error_of(machine: bough.Machine, offset_s: float = 0.0) -> tuple[float, float]:
    """Return bounds in seconds of how far the guest's clock is ahead of the right time.

    The guest read its clock at some moment between question and answer: each of several readings narrows the
    bounds.
    """
    low, high = float("-inf"), float("inf")
    for _ in range(12):
        before = time.time()
        told = float(machine.exec("date", "+%s.%N", check=True).stdout) - offset_s
        after = time.time()
        low, high = max(low, told - after), min(high, told - before)
    return low, high


def wait_right(machine: bough.Machine, offset_s: float = 0.0) -> None:
    """Wait for the right time: a busy guest takes a moment to set its clock."""
    try:
        wait_until(lambda: is_right(machine, offset_s), timeout_s=30)
    except AssertionError as error:
        raise AssertionError(f"its clock is ahead by {error_of(machine, offset_s)} s") from error


def is_right(machine: bough.Machine, offset_s: float = 0.0) -> bool:
    """Return whether the clock is right, as far as measurable. Wide bounds fail: any clock would be right by
    them.
    """
    low, high = error_of(machine, offset_s)
    assert high - low < HELD_S / 2, "this host is too busy to measure a clock"
    return low <= PROMISED_S and high >= -PROMISED_S


def test_after_a_pause(fork: bough.Machine, cli: Cli) -> None:
    cli("pause", fork.name)
    time.sleep(HELD_S)  # the delay that bough must correct
    cli("resume", fork.name)
    wait_right(fork)


def test_after_snapshots(fork: bough.Machine) -> None:
    for _ in range(4):
        fork.snapshot().delete()
    wait_right(fork)


def test_an_offset_stays(
    hv: bough.Hypervisor, late: bough.Machine, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    late.pause()
    time.sleep(HELD_S)
    late.resume()
    wait_right(late, -WEEK_S)
    snapshot = late.snapshot()
    for identity in ("new", "keep"):
        fork = snapshot.fork(identity=identity)  # type: ignore[arg-type]
        request.addfinalizer(fork.discard)
        wait_right(fork, -WEEK_S)
        fork.delete(force=True)
    late.suspend()
    time.sleep(HELD_S)
    late.resume()
    wait_right(late, -WEEK_S)
    late.restore(snapshot)
    wait_right(late, -WEEK_S)
    late.export(tmp_path / "late.bough")
    elsewhere = hv.import_bundle(tmp_path / "late.bough", name="elsewhere")
    request.addfinalizer(elsewhere.discard)
    elsewhere.start()
    wait_right(elsewhere, -WEEK_S)
    # The real-time clock, too, which the guest reads at its next boot, in whole seconds.
    read = "cat /sys/class/rtc/rtc0/since_epoch"
    assert abs(int(elsewhere.shell(read, check=True).stdout) + WEEK_S - time.time()) < 5
    elsewhere.delete(force=True)
    snapshot.delete()


def test_a_pause_that_the_service_does_not_outlive(
    fork: bough.Machine, cli: Cli, hv: bough.Hypervisor
) -> None:
    cli("pause", fork.name)
    bough.connect().shutdown()
    time.sleep(HELD_S)
    cli("resume", fork.name)
    machine = bough.connect().machine(fork.id)
    machine.wait()
    wait_right(machine)
