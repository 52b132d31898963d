"""The next fork of a snapshot, begun before a request."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest

import bough
from bough.paths import Home
from tests.acceptance.conftest import Cli, begun, wait_begun
from tests.conftest import MEMORY
from tests.torture.processes import kill, qemus, service_pid
from tests.waiting import wait_until


@pytest.fixture(scope="module")
def shared(booted: bough.Snapshot) -> Iterator[bough.Snapshot]:
    """Yield a snapshot for two tests, with one process image until the service ends."""
    made = snapshot_of_fork(booted)
    yield made
    made.delete()


@pytest.fixture
def snapshot(booted: bough.Snapshot) -> Iterator[bough.Snapshot]:
    """Yield a snapshot that no other test forks."""
    made = snapshot_of_fork(booted)
    yield made
    made.delete()


def snapshot_of_fork(booted: bough.Snapshot) -> bough.Snapshot:
    with booted.fork("ahead", ephemeral=True) as source:
        source.write_file("/dev/shm/word", "in memory")
        return source.snapshot()


def test_a_fork(
    hv: bough.Hypervisor, cli: Cli, bough_home: Home, shared: bough.Snapshot, gone: list[str]
) -> None:
    gone += ["ahead-1", "ahead-2", "ahead-3"]
    first = shared.fork("ahead-1")
    following = wait_begun(bough_home, shared.id)
    assert following not in [machine.id for machine in hv.machines()]
    assert following not in cli.text("list", "--json")
    assert hv.doctor_store()["clean"]

    second = shared.fork("ahead-2")
    assert second.id == following
    assert second.info().raw["forked_from"] == shared.id
    assert second.read_text("/dev/shm/word") == "in memory"
    assert second.exec("hostname").stdout.strip() == "ahead-2"
    assert second.read_text("/etc/machine-id") != first.read_text("/etc/machine-id")
    assert abs(int(second.exec("date", "+%s").stdout) - time.time()) < 2
    cli.error("port", "remove", "ahead-2", "1", says="machine 'ahead-2' forwards no port")

    # The fork is an ordinary machine.
    second.write_file("/root/kept", "kept")
    second.shell("sync")
    second.restart()
    assert second.read_text("/root/kept") == "kept"

    # A machine begun with a new identity cannot become a fork that keeps its parent's.
    wait_begun(bough_home, shared.id)
    same = shared.fork("ahead-3", identity="keep")
    assert same.exec("hostname").stdout.strip() == "ahead"


def test_the_service_is_killed(cli: Cli, bough_home: Home, shared: bough.Snapshot) -> None:
    shared.fork(ephemeral=True).discard()
    following = wait_begun(bough_home, shared.id)
    kill(service_pid(bough_home))
    assert following not in cli.text("list", "--json")
    wait_until(lambda: following not in qemus(bough_home), what="what the last service began is gone")
    with shared.fork(ephemeral=True) as fork:
        assert fork.read_text("/dev/shm/word") == "in memory"


def test_the_first_fork(bough_home: Home, booted: bough.Snapshot) -> None:
    """The first fork is begun while the snapshot is still being written."""
    with booted.fork(ephemeral=True) as source:
        source.write_file("/dev/shm/word", "in memory")
        made = source.snapshot()
        wait_until(lambda: begun(bough_home, made.id), what="a fork is begun", every_s=0.02)
        following = begun(bough_home, made.id)
        with made.fork(ephemeral=True) as fork:
            # A begun fork that gives way to one from a process image may still be there.
            assert fork.id in following
            assert fork.read_text("/dev/shm/word") == "in memory"
    made.delete()


def test_a_run(hv: bough.Hypervisor, bough_home: Home, debian: str) -> None:
    with hv.run(debian, memory=MEMORY) as vm:
        booted = vm.info().raw["snapshot"]
        following = wait_begun(bough_home, booted)
    with hv.run(debian, memory=MEMORY) as vm:
        assert vm.id == following
        assert vm.exec("hostname").stdout.strip() == vm.name
        assert not vm.name.startswith("fork-")
    with hv.run(debian, memory=MEMORY, environment={"WORD": "own"}) as vm:
        assert vm.id != following


def test_it_is_of_no_use(bough_home: Home, snapshot: bough.Snapshot) -> None:
    """The QEMU of the begun fork has ended."""
    snapshot.fork(ephemeral=True).discard()
    following = wait_begun(bough_home, snapshot.id)
    kill(qemus(bough_home)[following])
    with snapshot.fork(ephemeral=True) as fork:
        assert fork.id != following
        assert fork.read_text("/dev/shm/word") == "in memory"


def test_its_snapshot_is_deleted(hv: bough.Hypervisor, bough_home: Home, snapshot: bough.Snapshot) -> None:
    with snapshot.fork(ephemeral=True) as source:
        other = source.snapshot()
    other.fork(ephemeral=True).discard()
    following = wait_begun(bough_home, other.id)
    other.delete()
    wait_until(lambda: following not in qemus(bough_home), what="nothing waits for what is gone")
    wait_until(lambda: hv.doctor_store()["clean"])


@pytest.mark.parametrize("after_s", [1.0, 1.05, 1.2])
def test_the_service_ends(
    hv: bough.Hypervisor, cli: Cli, bough_home: Home, snapshot: bough.Snapshot, after_s: float
) -> None:
    """The service ends while a fork is being begun, or just after."""
    snapshot.fork(ephemeral=True).discard()
    time.sleep(after_s)
    hv.shutdown()
    records = {path.parent.name: path.read_bytes() for path in bough_home.machines.glob("*/machine.json")}
    running = qemus(bough_home).keys()
    cli.text("list")  # starts the next service
    assert [name for name, record in records.items() if json.loads(record)["standby"]] == []
    assert running <= records.keys()


def test_the_service_is_killed_before_a_fork_has_its_state(
    cli: Cli, bough_home: Home, snapshot: bough.Snapshot, gone: list[str]
) -> None:
    """A fork begun ahead stands for a requested fork: both QEMUs wait for the same state."""
    snapshot.fork(ephemeral=True).discard()
    following = wait_begun(bough_home, snapshot.id)
    kill(service_pid(bough_home))
    path = bough_home.machine(following).record
    record = json.loads(path.read_bytes())
    gone.append("ahead-half")
    path.write_text(
        json.dumps(
            {**record, "name": "ahead-half", "standby": False, "ephemeral": False, "state": "starting"}
        )
    )
    machine = cli.json("info", "ahead-half")
    assert machine["state"] == "failed"
    assert "the service ended before its saved state was loaded" in machine["failure"]["cause"]
    assert following not in qemus(bough_home)
    cli("start", "ahead-half")
    assert cli.text("exec", "ahead-half", "--", "hostname").strip() == "ahead-half"
