"""A machine with many snapshots: its disks stay fast, and no snapshot changes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import bough
from bough.errors import BoughError
from bough.images.overlays import render_chain
from bough.machines.disks.creation import disk_chain
from bough.machines.disks.merging import MOST_LAYERS
from bough.machines.record import MachineRecord
from bough.paths import Home
from tests.torture.processes import kill, qemus
from tests.waiting import wait_until

#: Enough data that a merge still runs when something is killed.
LARGE = "dd if=/dev/urandom of=/root/large bs=1M count=128 2>/dev/null; sync; cksum < /root/large"
DATA = {"size": "64MiB", "serial": "data"}


@pytest.fixture(scope="module")
def base(hv: bough.Hypervisor, debian: str) -> Iterator[bough.Snapshot]:
    """Yield a snapshot of a booted machine with a second disk."""
    machine = hv.create(debian, name="chains", memory="512MiB", disks=[DATA])
    machine.start()
    machine.wait("booted")  # otherwise each fork would continue the boot
    machine.shell("mkfs.ext4 -q /dev/vdb && mkdir /data && mount /dev/vdb /data", check=True)
    snapshot = machine.snapshot("chains-base")
    machine.delete(force=True)
    yield snapshot
    snapshot.delete()


@pytest.fixture
def machine(base: bough.Snapshot, hv: bough.Hypervisor) -> Iterator[bough.Machine]:
    machine = base.fork("long")
    yield machine
    fresh = bough.connect()
    for fork in fresh.machines():
        if fork.id == machine.id or fork.name.startswith("long-"):
            fork.discard()
    for snapshot in fresh.snapshots():
        if snapshot.info().machine == machine.id:
            snapshot.delete()


def layers(home: Home, machine: bough.Machine) -> list[int]:
    return [len(disk.layers) for disk in MachineRecord.read(home.machine(machine.id)).disks]


def is_short(home: Home, machine: bough.Machine) -> bool:
    return max(layers(home, machine)) <= MOST_LAYERS


def write(machine: bough.Machine, number: int) -> None:
    files = f"/root/number /root/at-{number} /data/number"
    machine.shell(f"echo {number} | tee {files} > /dev/null; sync {files} /root", check=True)


def check(machine: bough.Machine, number: int) -> None:
    there = "mountpoint -q /data || mount /dev/vdb /data"
    told = machine.shell(f"{there}; cat /root/number /data/number; ls /root/at-*")
    one = str(number)
    assert told.stdout.split() == [one, one, *sorted(f"/root/at-{n}" for n in range(number + 1))]


def check_disks(home: Home, machine: bough.Machine) -> None:
    """Check a stopped machine: qemu-img finds no error, and the headers match the record."""
    paths = home.machine(machine.id)
    for disk in MachineRecord.read(paths).disks:
        own, *below = disk_chain(disk, paths, home)
        done = subprocess.run(["qemu-img", "check", "-q", render_chain([own])], check=False)
        assert done.returncode in (0, 3)
        told = subprocess.run(
            ["qemu-img", "info", "--backing-chain", "--output=json", own],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        named = [Path(os.path.normpath(layer["filename"])) for layer in json.loads(told.stdout)]
        assert named == [own, *below]


def clean(hv: bough.Hypervisor) -> None:
    found = hv.doctor_store()
    assert [finding for finding in found["findings"] if not finding["harmless"]] == []


def test_many_snapshots(hv: bough.Hypervisor, bough_home: Home, machine: bough.Machine) -> None:
    points = []
    for number in range(20):
        write(machine, number)
        points.append(machine.snapshot(f"long-{number}", memory=number % 4 == 0))
    wait_until(lambda: is_short(bough_home, machine))
    assert machine.info().layers == max(layers(bough_home, machine))
    check(machine, 19)
    for number in (0, 7, 12, 16):
        fork = points[number].fork(f"long-fork-{number}", cold=number % 4 != 0)
        fork.start() if fork.state == "stopped" else None
        check(fork, number)
        fork.discard()
    # Delete the snapshots in the middle, and with them all overlays that no chain needs.
    for snapshot in points[2:18]:
        snapshot.delete()
    for snapshot in (points[0], points[1], points[18], points[19]):
        snapshot.verify()
    check(machine, 19)
    machine.restore("long-1")
    machine.start() if machine.state == "stopped" else None
    check(machine, 1)
    machine.stop()
    check_disks(bough_home, machine)
    clean(hv)


def test_of_a_machine_that_is_off(hv: bough.Hypervisor, bough_home: Home, machine: bough.Machine) -> None:
    write(machine, 0)
    machine.stop()
    for number in range(12):
        machine.snapshot(f"off-{number}")
        assert is_short(bough_home, machine)
        check_disks(bough_home, machine)
    clean(hv)
    machine.start()
    check(machine, 0)
    write(machine, 1)
    check(machine, 1)
    for number in range(12):
        hv.snapshot(f"off-{number}").verify()


def begin_a_merge(machine: bough.Machine, home: Home) -> str:
    """Make a chain so long that a merge begins, which takes some seconds; return the checksum of
    its content.
    """
    number = 0
    while max(layers(home, machine)) < MOST_LAYERS:
        write(machine, number)
        machine.snapshot(memory=False)
        number += 1
    large = machine.shell(LARGE, check=True).stdout
    machine.snapshot(memory=False)
    assert max(layers(home, machine)) == MOST_LAYERS + 1
    wait_until(lambda: machine.info().disk_bytes > 16 << 20)
    assert max(layers(home, machine)) == MOST_LAYERS + 1, "it is over before anything was killed"
    return large


def check_file(machine: bough.Machine, large: str) -> None:
    # Read from the disk, not from the guest's page cache.
    told = machine.shell("echo 3 > /proc/sys/vm/drop_caches; cksum < /root/large", check=True)
    assert told.stdout == large


@pytest.mark.long
def test_the_service_is_killed(hv: bough.Hypervisor, bough_home: Home, machine: bough.Machine) -> None:
    large = begin_a_merge(machine, bough_home)
    os.kill(hv.version()["pid"], signal.SIGKILL)
    fresh = bough.connect()
    again = fresh.machine("long")
    check_file(again, large)
    wait_until(lambda: is_short(bough_home, again))
    check_file(again, large)
    again.shell("sync", check=True)
    # A chain that was reported as short is short on disk, whatever QEMU has in memory.
    kill(qemus(bough_home)[again.id])
    wait_until(lambda: again.state == "failed")
    check_disks(bough_home, again)
    again.start()
    check_file(again, large)
    clean(fresh)


@pytest.mark.long
def test_qemu_is_killed(hv: bough.Hypervisor, bough_home: Home, machine: bough.Machine) -> None:
    large = begin_a_merge(machine, bough_home)
    machine.shell("sync", check=True)
    kill(qemus(bough_home)[machine.id])
    wait_until(lambda: machine.state == "failed")
    clean(hv)
    machine.start()
    check_file(machine, large)
    machine.snapshot(memory=False)
    wait_until(lambda: is_short(bough_home, machine))
    check_file(machine, large)


def test_who_comes_meanwhile_does_not_wait(
    hv: bough.Hypervisor, bough_home: Home, machine: bough.Machine
) -> None:
    """A merge gives way to any operation of the machine."""
    large = begin_a_merge(machine, bough_home)
    fork = machine.fork("long-beside")
    check_file(fork, large)
    machine.suspend()
    assert machine.state == "suspended"
    machine.resume()
    check_file(machine, large)
    machine.snapshot("long-last")
    machine.stop(force=True)
    machine.start()
    check_file(machine, large)
    for snapshot in hv.snapshots():
        snapshot.verify()
    clean(hv)
    with pytest.raises(BoughError):
        machine.delete()
