"""The whole Debian image on KVM: boot, commands, snapshot, forks, and `bough run`'s booted snapshot."""

from __future__ import annotations

import time
from typing import Any

import bough
from tests.kvm.patience import BOOT_S
from tests.kvm.test_state import wait_right

_WHO_AM_I = "cat /etc/machine-id; hostname; head -c 16 /dev/urandom | od -An -tx1"
_SERVICES = ("bough-agent.service", "systemd-journald.service")


def test_debian(hv: bough.Hypervisor, debian: str, hardware: dict[str, Any]) -> None:
    spec = hardware | {"memory": "512MiB"}
    began = time.monotonic()
    with hv.run(debian, timeout=BOOT_S, **spec) as machine:
        print(f"first run: {time.monotonic() - began:.0f} s", flush=True)
        _check(machine)
        assert "inet " in machine.shell("ip -4 addr show scope global").stdout
        _check_forks(machine)
    began = time.monotonic()
    with hv.run(debian, timeout=BOOT_S, **spec) as machine:
        print(f"second run: {time.monotonic() - began:.0f} s", flush=True)
        _check(machine)


def _check_forks(machine: bough.Machine) -> None:
    """Fork a snapshot with a process: the process goes on, and each machine has its own identity."""
    machine.shell("setsid sleep 100000 < /dev/null > /dev/null 2>&1 &", check=True)
    snapshot = machine.snapshot()
    print(f"pause {snapshot.info().pause_ms} ms", flush=True)
    began = time.monotonic()
    children = [snapshot.fork("debian-1"), snapshot.fork("debian-2")]
    print(f"two forks: {time.monotonic() - began:.0f} s", flush=True)
    told = []
    for each in (machine, *children):
        _check(each)
        wait_right(each)
        assert each.shell("grep -qsx sleep /proc/[0-9]*/comm").ok
        told.append(each.shell(_WHO_AM_I, check=True).stdout.splitlines())
    for values in zip(*told, strict=True):
        assert len(set(values)) == len(told), values
    for child in children:
        child.delete(force=True)
    snapshot.delete()


def _check(machine: bough.Machine) -> None:
    assert machine.info().accelerator == "kvm"
    active = machine.exec("systemctl", "is-active", *_SERVICES).stdout.split()
    assert active == ["active"] * len(_SERVICES)
