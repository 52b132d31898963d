"""Machines that start again: after a failure, at the start of the service, after a power loss of the host.

No guest has to answer: QEMU runs and is killed.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import bough
from bough.errors import BoughError
from bough.paths import Home
from tests.waiting import wait_until

SMALL: dict[str, Any] = {"memory": "128MiB", "vcpus": 1, "uplink": False}


@pytest.fixture
def machines(hv: bough.Hypervisor, debian: str) -> Iterator[list[bough.Machine]]:
    made: list[bough.Machine] = []
    yield made
    client = bough.connect()
    for machine in made:
        for each in client.machines():
            if each.id == machine.id:
                each.delete(force=True)


def kill_qemu(machine: bough.Machine) -> None:
    pid = machine.info().pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)


def end_service(home: Home, how: signal.Signals) -> None:
    pid = int(home.lock.read_text())
    os.kill(pid, how)
    wait_until(lambda: is_gone(pid))


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def restarts(machine: bough.Machine) -> dict[str, Any]:
    return machine.info().restarts or {}


def test_a_machine_that_failed_is_started_again_and_less_and_less_often(
    hv: bough.Hypervisor, debian: str, machines: list[bough.Machine], bough_home: Home
) -> None:
    machine = hv.create(debian, name="again", restart="on-failure", **SMALL)
    machines.append(machine)
    machine.start(wait=False)
    assert restarts(machine)["count"] == 0
    for count in (1, 2):
        kill_qemu(machine)
        wait_until(lambda: machine.state == "failed")
        told = machine.info()
        assert told.failure is not None
        assert told.failure.signal == "SIGKILL"
        assert restarts(machine)["count"] == count
        assert "SIGKILL" in restarts(machine)["cause"]
        wait_until(lambda: machine.state == "running")
        assert restarts(machine)["next"] is None
    # The next pause is 4 s. A service that is killed meanwhile does not forget the pause.
    kill_qemu(machine)
    wait_until(lambda: machine.state == "failed")
    planned = restarts(machine)["next"]
    end_service(bough_home, signal.SIGKILL)
    machine = bough.connect().machine(machine.id)
    assert (machine.state, restarts(machine)["next"]) == ("failed", planned)
    wait_until(lambda: machine.state == "running")
    assert restarts(machine)["count"] == 3
    machine.stop(force=True)
    assert machine.state == "stopped"
    assert restarts(machine)["count"] == 0


def test_a_restart_that_waits_is_called_off(
    hv: bough.Hypervisor, debian: str, machines: list[bough.Machine]
) -> None:
    client = bough.connect()
    machine = client.create(debian, name="called-off", restart="on-failure", **SMALL)
    machines.append(machine)
    machine.start(wait=False)
    for _ in range(2):
        kill_qemu(machine)
        wait_until(lambda: machine.state == "failed")
        wait_until(lambda: machine.state == "running")
    kill_qemu(machine)
    wait_until(lambda: machine.state == "failed")
    machine.stop()
    assert machine.state == "stopped"
    time.sleep(5)  # the cancelled pause
    assert machine.state == "stopped"
    assert machine.stop() == "already"
    assert machine.state == "stopped"
    machine.start(wait=False)
    kill_qemu(machine)
    wait_until(lambda: machine.state == "failed")
    machine.delete()
    with pytest.raises(BoughError, match="no machine"):
        machine.info()


def test_without_a_policy_it_stays_failed(
    hv: bough.Hypervisor, debian: str, machines: list[bough.Machine]
) -> None:
    machine = bough.connect().create(debian, name="stays", **SMALL)
    machines.append(machine)
    machine.start(wait=False)
    kill_qemu(machine)
    wait_until(lambda: machine.state == "failed")
    time.sleep(2)  # longer than the first pause of a policy
    assert machine.state == "failed"


def test_autostart(
    hv: bough.Hypervisor, debian: str, machines: list[bough.Machine], bough_home: Home
) -> None:
    client = bough.connect()
    auto = client.create(debian, name="auto", autostart=True, **SMALL)
    plain = client.create(debian, name="plain", **SMALL)
    rested = client.create(debian, name="rested", autostart=True, **SMALL)
    machines += [auto, plain, rested]
    rested.start(wait=False)
    rested.stop(force=True)
    end_service(bough_home, signal.SIGTERM)
    client = bough.connect()
    auto, plain, rested = (client.machine(name) for name in ("auto", "plain", "rested"))
    wait_until(lambda: auto.state == "running")
    assert plain.state == "stopped"
    assert rested.state == "stopped", "somebody stopped it since the host booted"
    # The host loses power: service and QEMU end at once, and their files stay.
    plain.start(wait=False)
    pids = [auto.info().pid, plain.info().pid]
    end_service(bough_home, signal.SIGKILL)
    for pid in pids:
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
    client = bough.connect()
    auto, plain = client.machine("auto"), client.machine("plain")
    wait_until(lambda: auto.state == "running")
    assert plain.state == "failed"
    failure = plain.info().failure
    assert failure is not None
    assert failure.cause
