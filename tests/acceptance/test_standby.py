"""Standby machines: for the next run of an image, for the next fork of a snapshot."""

from __future__ import annotations

import time

import pytest

import bough
from bough.errors import InvalidInput
from bough.paths import Home
from tests.acceptance.conftest import Cli, records
from tests.conftest import MEMORY
from tests.torture.processes import kill, qemus
from tests.waiting import wait_until


def wait_for_standby(hv: bough.Hypervisor) -> None:
    """Wait for an image's standby machines; the first one boots the image."""
    wait_until(lambda: all(one["ready"] == one["count"] for one in hv.standby_machines()), timeout_s=180)


def test_runs(hv: bough.Hypervisor, cli: Cli, debian: str) -> None:
    before = cli.names()
    with pytest.raises(InvalidInput, match="a standby machine has no host name"):
        hv.keep_standby(debian, 1, memory=MEMORY, commands=["true"])
    hv.keep_standby(debian, 1, memory=MEMORY)
    try:
        wait_for_standby(hv)
        assert cli.names() == before, "a standby machine is not listed"
        for _ in range(2):
            with hv.run(debian, memory=MEMORY) as vm:
                assert vm.exec("hostname").stdout.strip() == vm.name
                assert abs(float(vm.exec("date", "+%s.%N").stdout) - time.time()) < 0.5
                assert vm.name in cli.names()
            wait_for_standby(hv)
    finally:
        hv.keep_standby(debian, 0, memory=MEMORY)
    assert hv.standby_machines() == []


def test_the_next_of_a_run_is_awake(hv: bough.Hypervisor, bough_home: Home, debian: str) -> None:
    def states() -> list[str]:
        return sorted(r["state"] for r in records(bough_home) if r["standby"] and r["identity"] == "known")

    def is_as_it_should() -> bool:
        return states() == ["paused", "running"] and hv.standby_machines()[0]["ready"] == 2

    hv.keep_standby(debian, 2, memory=MEMORY)
    try:
        wait_until(is_as_it_should, timeout_s=180)
        # Two runs at once: they get a running and a paused standby machine.
        with hv.run(debian, memory=MEMORY) as one, hv.run(debian, memory=MEMORY) as other:
            for vm in (one, other):
                assert vm.exec("hostname").stdout.strip() == vm.name
                assert abs(float(vm.exec("date", "+%s.%N").stdout) - time.time()) < 0.5
        wait_until(is_as_it_should, timeout_s=180)
        # A running standby machine that ends is no loss.
        (awake,) = [r["id"] for r in records(bough_home) if r["standby"] and r["state"] == "running"]
        kill(qemus(bough_home)[awake])
        with hv.run(debian, memory=MEMORY) as vm:
            assert vm.id != awake
            assert vm.exec("true").exit_code == 0
    finally:
        hv.keep_standby(debian, 0, memory=MEMORY)


def test_forks(hv: bough.Hypervisor, cli: Cli, booted: bough.Snapshot, gone: list[str]) -> None:
    source = booted.fork("source")
    gone += ["source", "source-1", "picked"]
    source.write_file("/dev/shm/word", "in memory")
    snapshot = source.snapshot("stands-by")
    before = cli.names()
    cli("standby", "--snapshot", "stands-by", "--count", "2")
    wait_for_standby(hv)
    assert cli.names() == before
    kept = cli.json("standby")
    assert [(one["snapshot"], one["count"], one["ready"]) for one in kept] == [(snapshot.id, 2, 2)]

    assert hv.doctor_store()["clean"]

    # A standby machine's name is free for every request.
    first, second = snapshot.fork("source-1"), snapshot.fork("picked")
    identities = {source.read_text("/etc/machine-id")}
    for machine, name in ((first, "source-1"), (second, "picked")):
        assert machine.exec("hostname").stdout.strip() == name
        identities.add(machine.read_text("/etc/machine-id"))
        assert abs(int(machine.exec("date", "+%s").stdout) - time.time()) < 2
    assert len(identities) == 3
    assert second.read_text("/dev/shm/word") == "in memory"
    assert second.info().raw["forked_from"] == snapshot.id
    cli.error("port", "remove", "picked", "1", says="machine 'picked' forwards no port")
    snapshot.fork(ephemeral=True).discard()

    # From now on it is an ordinary machine.
    second.write_file("/root/kept", "kept")
    second.shell("sync")
    second.restart()
    assert second.read_text("/root/kept") == "kept"
    assert second.exec("hostname").stdout.strip() == "picked"

    snapshot.delete()
    assert hv.standby_machines() == []
    wait_until(lambda: hv.doctor_store()["clean"])


def test_what_cannot_stand_by(cli: Cli, booted: bough.Snapshot, gone: list[str]) -> None:
    gone.append("bare")
    booted.fork("bare").snapshot("bare-disks", memory=False)
    cli.error("standby", "--snapshot", "bare-disks", says="no memory")
    cli.error("standby", "--snapshot", "nothing-there", says="nothing-there")
    cli.error("standby", "--snapshot", "bare-disks", "--memory", "1GiB", says="--snapshot goes with")
    cli.error("standby", "--count", "2", says="--count needs IMAGE")
    cli("snapshot", "delete", "bare-disks")
