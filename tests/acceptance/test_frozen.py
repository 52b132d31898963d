"""Forks from a process image are ordinary forks."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest

import bough
from bough.errors import BoughError
from bough.machines.disks.merging import TOO_MANY_LAYERS
from bough.paths import Home
from tests.acceptance.conftest import Cli, is_thawed, records, wait_begun
from tests.torture.processes import kill, qemus, service_pid
from tests.waiting import wait_until

DMI = "/sys/class/dmi/id"
OWN_IDS = f"cat {DMI}/product_uuid {DMI}/product_serial /sys/class/net/e*/address /etc/machine-id"


def prewarms(home: Home) -> list[str]:
    return [record["id"] for record in records(home) if record["name"].startswith("prewarm-")]


def wait_settled(home: Home, machine: bough.Machine) -> None:
    record = home.machine(machine.id).record
    wait_until(lambda: json.loads(record.read_bytes())["identity"] == "known", what="it has settled")


def ids_of(machine: bough.Machine) -> list[str]:
    return machine.exec("sh", "-c", OWN_IDS, check=True).stdout.split()


@pytest.fixture(scope="module")
def snapshot(booted: bough.Snapshot, bough_home: Home) -> Iterator[bough.Snapshot]:
    """Yield a snapshot that has been forked often enough to have a process image."""
    with booted.fork("thawed", ephemeral=True) as source:
        source.write_file("/dev/shm/word", "in memory")
        made = source.snapshot()

    def goes_on() -> bool:
        with made.fork(ephemeral=True) as fork:
            return is_thawed(bough_home, fork.id)

    wait_until(goes_on, timeout_s=240, what="forks go on from a frozen process", every_s=1.5)
    yield made
    made.delete()


def test_a_snapshot_that_nobody_has_forked(bough_home: Home, booted: bough.Snapshot) -> None:
    with booted.fork(ephemeral=True) as source:
        source.write_file("/dev/shm/word", "in memory")
        made = source.snapshot()
    wait_begun(bough_home, made.id)
    with made.fork(ephemeral=True) as fork:
        assert is_thawed(bough_home, fork.id)
        assert fork.read_text("/dev/shm/word") == "in memory"
    made.delete()


def test_many_of_one_call(bough_home: Home, booted: bough.Snapshot) -> None:
    """The forks continue from a new process image, with all messages that its QEMU had not yet sent."""
    with booted.fork(ephemeral=True) as source:
        made = source.snapshot()
    forks = made.fork(count=16, ephemeral=True)
    if not all(is_thawed(bough_home, fork.id) for fork in forks):
        # On a busy host a pre-warm takes longer than the start of all forks: then each fork starts a QEMU.
        for fork in forks:
            fork.discard()
        wait_begun(bough_home, made.id)
        forks = made.fork(count=16, ephemeral=True)
    assert all(is_thawed(bough_home, fork.id) for fork in forks)
    time.sleep(1.5)
    for fork in forks:
        assert fork.exec("hostname").stdout.strip() == fork.name
        fork.discard()
    made.delete()


def test_one_on_more_layers_than_are_left_unmerged(bough_home: Home, booted: bough.Snapshot) -> None:
    """The pre-warmed machine merges no overlay: its forks need the whole chain."""
    source = booted.fork(ephemeral=True)
    snapshots = []
    for number in range(TOO_MANY_LAYERS + 1):
        source.exec("sh", "-c", f"date +%N > /root/{number}; cat /root/* | sha256sum; sync", check=True)
        snapshots.append(source.snapshot())
        below = snapshots[-1].fork(ephemeral=True)
        source.discard()
        source = below
    wait_begun(bough_home, snapshots[-1].id)
    whole = source.exec("sh", "-c", "cat /root/* | sha256sum", check=True).stdout
    with snapshots[-1].fork(ephemeral=True) as fork:
        assert is_thawed(bough_home, fork.id)
        told = fork.exec("sh", "-c", "echo 3 > /proc/sys/vm/drop_caches; cat /root/* | sha256sum", check=True)
        assert told.stdout == whole
    source.discard()
    for made in snapshots:
        made.delete()


@pytest.fixture
def forks(snapshot: bough.Snapshot) -> Iterator[list[bough.Machine]]:
    made = snapshot.fork(count=3)
    yield made
    for fork in made:
        fork.delete(force=True)


def test_each_is_somebody(bough_home: Home, forks: list[bough.Machine]) -> None:
    said = []
    for fork in forks:
        assert is_thawed(bough_home, fork.id)
        assert fork.read_text("/dev/shm/word") == "in memory"
        drawn = (
            "od -An -tx1 -N32 /dev/urandom; python3 -c 'import os; print(os.urandom(32).hex())'; date +%s.%N"
        )
        told = fork.exec("sh", "-c", f"{drawn}; cat /etc/machine-id; hostname", check=True).stdout.split(
            "\n"
        )[:-1]
        late = time.time() - float(told[-3])
        assert -0.2 < late < 5, late
        said.append(
            [
                *told[:-3],
                *told[-2:],
                fork.exec("sh", "-c", "cat /sys/class/net/e*/address", check=True).stdout,
            ]
        )
    for which, ours in enumerate(zip(*said, strict=True)):
        assert len(set(ours)) == len(forks), (which, ours)


def test_it_keeps_what_it_writes_and_boots_as_itself(bough_home: Home, forks: list[bough.Machine]) -> None:
    fork = forks[0]
    wait_settled(bough_home, fork)
    before = ids_of(fork)
    record = json.loads(bough_home.machine(fork.id).record.read_bytes())
    fork.exec("sh", "-c", "echo kept > /root/word; sync", check=True)
    fork.stop(force=True)
    fork.start()
    fork.wait("booted")
    assert not is_thawed(bough_home, fork.id)
    assert fork.read_text("/root/word") == "kept\n"
    uuid, serial, mac, machine_id = ids_of(fork)
    assert (uuid.lower(), serial, mac) == (
        record["hardware"]["uuid"],
        fork.id,
        record["hardware"]["nics"][0]["mac"],
    )
    assert [mac, machine_id] == before[2:]


def test_it_reboots_as_itself(bough_home: Home, forks: list[bough.Machine]) -> None:
    """The continued process, with its own ids, starts the firmware again."""
    fork = forks[0]
    wait_settled(bough_home, fork)
    record = json.loads(bough_home.machine(fork.id).record.read_bytes())
    boot = fork.read_text("/proc/sys/kernel/random/boot_id")
    fork.exec("sh", "-c", "sync; (sleep 1; systemctl reboot) > /dev/null 2>&1 &", check=True)

    def is_back() -> bool:
        try:
            return fork.read_text("/proc/sys/kernel/random/boot_id") != boot
        except BoughError:
            return False

    wait_until(is_back, timeout_s=120, what="it has rebooted", every_s=0.5)
    fork.wait("booted")
    assert is_thawed(bough_home, fork.id)
    uuid, serial, mac, _ = ids_of(fork)
    assert (uuid.lower(), serial, mac) == (
        record["hardware"]["uuid"],
        fork.id,
        record["hardware"]["nics"][0]["mac"],
    )


def test_it_is_branched_and_suspended(bough_home: Home, forks: list[bough.Machine]) -> None:
    fork = forks[0]
    fork.write_file("/dev/shm/more", "since")
    taken = fork.snapshot()
    try:
        with taken.fork(ephemeral=True) as below:
            assert below.read_text("/dev/shm/more") == "since"
    finally:
        taken.delete()
    fork.suspend()
    fork.resume()
    assert fork.read_text("/dev/shm/more") == "since"


def test_it_outlives_the_service(cli: Cli, bough_home: Home, forks: list[bough.Machine]) -> None:
    pid = qemus(bough_home)[forks[0].id]
    kill(service_pid(bough_home))
    cli.text("list")  # starts the next service
    assert forks[0].read_text("/dev/shm/word") == "in memory"
    assert qemus(bough_home)[forks[0].id] == pid


def test_with_its_parents_identity(bough_home: Home, snapshot: bough.Snapshot) -> None:
    with (
        snapshot.fork(identity="keep", ephemeral=True) as one,
        snapshot.fork(identity="keep", ephemeral=True) as two,
    ):
        assert ids_of(one)[2:] == ids_of(two)[2:]


@pytest.mark.parametrize("after_s", [1.2, 2.0, 3.0])
def test_the_service_is_killed_while_it_rehearses(
    hv: bough.Hypervisor, cli: Cli, bough_home: Home, booted: bough.Snapshot, after_s: float
) -> None:
    with booted.fork(ephemeral=True) as source:
        other = source.snapshot()
    for fork in other.fork(count=2, ephemeral=True):
        fork.discard()
    time.sleep(after_s)
    kill(service_pid(bough_home))
    cli.text("list")  # starts the next service
    wait_until(lambda: prewarms(bough_home) == [], what="the rehearsal is gone")
    with other.fork(ephemeral=True) as fork:
        assert fork.exec("true").exit_code == 0
    other.delete()
    wait_until(lambda: hv.doctor_store()["clean"])
