"""Snapshots and forks of running machines, as users make them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

import bough
from bough.errors import Conflict, NameTaken, NotFound
from bough.machines.record import MachineRecord
from bough.paths import Home
from bough.progress import Progress
from tests.acceptance.conftest import Cli
from tests.conftest import MEMORY
from tests.waiting import wait_until

#: `make torture` makes more of them.
FORKS = int(os.environ.get("BOUGH_FORKS", "3"))
FORKS_AT_ONCE = 20
WHAT = (
    "machine-id",
    "host name",
    "MAC",
    "ed25519 host key",
    "ecdsa host key",
    "urandom",
    "Python",
    "new key",
)
WHO_AM_I = """
set -e
cat /etc/machine-id; hostname; cat /sys/class/net/e*/address
cut -d ' ' -f 2 /etc/ssh/ssh_host_ed25519_key.pub /etc/ssh/ssh_host_ecdsa_key.pub
head -c 32 /dev/urandom | base64
python3 -c 'import os; print(os.urandom(32).hex())'
ssh-keygen -q -t ed25519 -N '' -f /run/key
cut -d ' ' -f 2 /run/key.pub
"""


@pytest.fixture(scope="module")
def origin(booted: bough.Snapshot) -> Iterator[bough.Machine]:
    """Yield a running machine that the tests here fork and leave running."""
    machine = booted.fork("origin")
    machine.write_file("/root/word", "before")
    # A process whose memory shows whether it continued or started again.
    machine.shell(
        "setsid sh -c 'n=0; while :; do n=$((n+1)); echo $n 1<>/run/count; sleep .5; done' >/dev/null 2>&1 &"
    )
    yield machine
    machine.delete(force=True)


@pytest.fixture(scope="module")
def snapshot(origin: bough.Machine) -> bough.Snapshot:
    return origin.snapshot("ready", message="booted")


@pytest.fixture
def forks(hv: bough.Hypervisor) -> Iterator[list[bough.Machine]]:
    made: list[bough.Machine] = []
    yield made
    for machine in made:
        machine.discard()


def test_the_machine_runs_on(origin: bough.Machine, snapshot: bough.Snapshot) -> None:
    info = snapshot.info()
    assert info.consistency == "memory"
    assert info.machine_name == "origin"
    before = int(origin.read_text("/run/count"))
    origin.shell("echo after >> /root/log; sync")
    time.sleep(1.2)  # so that the process inside counts on
    assert int(origin.read_text("/run/count")) > before
    assert origin.state == "running"
    snapshot.verify()


def test_a_fork_goes_on_with_its_processes_and_is_somebody_else(
    origin: bough.Machine, snapshot: bough.Snapshot, forks: list[bough.Machine]
) -> None:
    origin.write_file("/root/word", "later")
    fork = snapshot.fork("other")
    forks.append(fork)
    assert fork.read_text("/root/word") == "before"
    count = int(fork.read_text("/run/count"))
    assert count > 0
    assert fork.exec("hostname").stdout.strip() == "other"
    for path in ("/etc/machine-id", "/etc/ssh/ssh_host_ed25519_key.pub"):
        assert fork.read_text(path) != origin.read_text(path), path
    address = "cat /sys/class/net/e*/address"
    assert fork.shell(address).stdout != origin.shell(address).stdout
    # Writes of one are not seen by the other.
    fork.write_file("/root/mine", "x")
    with pytest.raises(NotFound):
        origin.read_text("/root/mine")


def test_a_paused_fork_keeps_no_other_from_settling(
    bough_home: Home, snapshot: bough.Snapshot, forks: list[bough.Machine]
) -> None:
    """The paused fork is the first whose turn comes: a fork settles 3 s after its start."""
    still = snapshot.fork("still")
    forks.append(still)
    still.pause()
    lively = snapshot.fork("lively")
    forks.append(lively)

    def identity_of(machine: bough.Machine) -> str:
        return MachineRecord.read(bough_home.machine(machine.id)).identity

    wait_until(lambda: identity_of(lively) == "known", timeout_s=40)
    assert identity_of(still) == "new"
    still.resume()
    wait_until(lambda: identity_of(still) == "known", timeout_s=40)


def test_the_time_is_right(snapshot: bough.Snapshot, forks: list[bough.Machine]) -> None:
    fork = snapshot.fork()
    forks.append(fork)
    told = int(fork.exec("date", "+%s%N").stdout)
    assert abs(told - time.time_ns()) < 1_000_000_000


def test_nobody_meets_himself(booted: bough.Snapshot, forks: list[bough.Machine]) -> None:
    """Identity, and the first random data of a guest, belong to one fork only."""
    told: list[list[str]] = []
    for begin in range(0, FORKS, FORKS_AT_ONCE):
        made = booted.fork(count=min(FORKS_AT_ONCE, FORKS - begin), timeout=600)
        forks.extend(made)
        with ThreadPoolExecutor(4) as pool:
            done = pool.map(lambda fork: fork.shell(WHO_AM_I, check=True, timeout=120), made)
            for machine_id, hostname, *rest in (each.stdout.splitlines() for each in done):
                # A name is free again after its machine is deleted, and the next round uses it.
                told.append([machine_id, f"{hostname} of round {begin}", *rest])
        while forks:
            forks.pop().discard()
    assert len(told) == FORKS
    for what, *values in zip(WHAT, *told, strict=True):
        assert all(values), what
        assert len(set(values)) == FORKS, what
    print(f"{FORKS} forks: {', '.join(WHAT)} are distinct")


def test_a_fork_of_a_fork_of_what_runs(origin: bough.Machine, forks: list[bough.Machine]) -> None:
    child = origin.fork("child")
    forks.append(child)
    child.write_file("/root/word", "child")
    child.shell("mount -t tmpfs none /mnt; echo memory > /mnt/only")
    grandchild = child.fork("grandchild")
    forks.append(grandchild)
    child.delete(force=True)
    assert grandchild.read_text("/root/word") == "child"
    assert grandchild.read_text("/mnt/only") == "memory\n"


def test_identity_keep(snapshot: bough.Snapshot, origin: bough.Machine, forks: list[bough.Machine]) -> None:
    fork = snapshot.fork("twin", identity="keep")
    forks.append(fork)
    assert fork.exec("hostname").stdout.strip() == "origin"
    assert fork.read_text("/etc/machine-id") == origin.read_text("/etc/machine-id")


def test_restore_in_place(origin: bough.Machine, forks: list[bough.Machine]) -> None:
    machine = origin.fork("restored")
    forks.append(machine)
    machine.write_file("/root/word", "good")
    machine.snapshot("good")
    machine.write_file("/root/word", "bad")
    machine.restore("good")
    assert machine.state == "running"
    assert machine.read_text("/root/word") == "good"
    assert machine.exec("hostname").stdout.strip() == "restored"
    with pytest.raises(Conflict):
        origin.restore("good")
    assert origin.exec("true").ok, "it was refused, and yet not left alone"


def test_of_a_stopped_machine(hv: bough.Hypervisor, debian: str, forks: list[bough.Machine]) -> None:
    machine = hv.create(debian, name="off", memory=MEMORY)
    forks.append(machine)
    snapshot = machine.snapshot("off-1")
    assert snapshot.info().consistency == "stopped"
    fork = snapshot.fork("off-fork")
    forks.append(fork)
    assert fork.state == "stopped"
    fork.start()
    assert fork.exec("hostname").stdout.strip() == "off-fork"
    machine.delete()
    snapshot.verify()
    snapshot.delete()
    assert fork.exec("true").ok


def test_deleting_one_in_the_middle_breaks_no_other(
    origin: bough.Machine, hv: bough.Hypervisor, forks: list[bough.Machine]
) -> None:
    machine = origin.fork("line")
    forks.append(machine)
    points = []
    for number in range(3):
        machine.write_file("/root/number", str(number))
        points.append(machine.snapshot(f"line-{number}"))
    points[1].delete()
    assert "line-1" not in {snapshot.label for snapshot in hv.snapshots()}
    points[2].verify()
    for number in (0, 2):
        fork = points[number].fork()
        forks.append(fork)
        assert fork.read_text("/root/number") == str(number)
    machine.delete(force=True)
    for number in (0, 2):
        points[number].delete()
    assert forks[-1].exec("cat", "/root/number").stdout == "2"


def test_deleting_its_base_while_it_is_written(origin: bough.Machine, forks: list[bough.Machine]) -> None:
    """The memory of a snapshot is written as the difference from the machine's last snapshot."""
    base = origin.snapshot()

    def delete_base(progress: Progress) -> None:
        if progress.step == "writing memory":
            base.delete()

    origin.write_file("/dev/shm/word", "after the base")
    later = origin.snapshot(progress=delete_base)
    with pytest.raises(NotFound):
        base.info()
    later.verify()
    forks.append(later.fork())
    assert forks[-1].read_text("/dev/shm/word") == "after the base"


def test_after_the_service_was_killed(
    hv: bough.Hypervisor, snapshot: bough.Snapshot, forks: list[bough.Machine], cli: Cli
) -> None:
    import os
    import signal

    forks.append(snapshot.fork("outlives"))
    os.kill(hv.version()["pid"], signal.SIGKILL)
    fresh = bough.connect()
    machine = fresh.machine("outlives")
    assert machine.exec("hostname").stdout.strip() == "outlives"
    with fresh.snapshot("ready").fork("after-kill", ephemeral=True) as fork:
        assert fork.exec("true").ok
    again = machine.fork("of-outlives")
    forks.append(again)
    assert again.read_text("/root/word") == "before"


def test_from_the_shell(cli: Cli, origin: bough.Machine, gone: list[str]) -> None:
    gone += ["shell-a", "shell-b", "shell-c-1", "shell-c-2"]
    cli("snapshot", "create", "origin", "--name", "shell-point", "-m", "for the shell")
    assert "for the shell" in cli.text("snapshot", "list")
    assert cli.text("fork", "shell-point", "shell-a", "shell-b").split() == ["shell-a", "shell-b"]
    assert cli.text("exec", "shell-b", "--", "hostname") == "shell-b"
    assert "shell-a" in cli.text("snapshot", "tree")
    assert cli.text("fork", "shell-point", "shell-c", "--count", "2").split() == ["shell-c-1", "shell-c-2"]
    cli.error("fork", "shell-point", "shell-a", says="exists already")
    cli.error("fork", "shell-point", "d", "e", "--count", "3", says="2 names for 3 forks", hint="numbered")
    cli.error("fork", "shell-pint", says="no machine is called", hint="")
    cli.error("snapshot", "create", "origin", "--name", "shell-point", says="exists already")
    cli("snapshot", "delete", "shell-point")
    assert cli.text("exec", "shell-a", "--", "cat", "/root/word")


def test_a_label_is_one_snapshots(origin: bough.Machine, snapshot: bough.Snapshot) -> None:
    with pytest.raises(NameTaken):
        origin.snapshot("ready")
    assert origin.exec("true").ok


def test_a_label_that_is_a_machines_name(cli: Cli, booted: bough.Snapshot, gone: list[str]) -> None:
    gone += ["same", "same-2", "same-3"]
    cli("fork", booted.id, "same")
    made = cli.json("snapshot", "create", "same", "--name", "same", "--disks-only")
    try:
        machine = cli.json("info", "same")["id"]
        told = cli.error("fork", "same", "same-2", says="ambiguous", hint=made["id"])
        assert machine in told
        cli.error("export", "same", "-", says="ambiguous")
        cli("fork", made["id"], "same-2", "--cold")
        cli("fork", machine, "same-3", "--cold")
    finally:
        for name in gone:
            cli("delete", name, "--force", check=False)
        cli("snapshot", "delete", made["id"])
