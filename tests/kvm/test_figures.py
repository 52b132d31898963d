"""Figures of forks on KVM, beside plain QEMU in the same run. Printed only: nested times mean little."""

from __future__ import annotations

import shutil
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import bough
from bough.paths import Home
from tests.torture.processes import qemus, service_pid

_ROUNDS = 3
_COUNTERS = Path("/sys/kernel/debug/kvm")
_PLAIN = (
    "-nodefaults",
    "-display",
    "none",
    "-machine",
    "q35,accel=kvm",
    "-m",
    "256",
    "-smp",
    "1",
    "-serial",
    "stdio",
)


def seconds(work: Callable[[], Any]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began


def told(what: str, times: list[float]) -> None:
    print(f"{what}: median {statistics.median(times):.2f} s of {[round(each, 2) for each in times]}")


@pytest.mark.users("root")
def test_boot_beside_plain_qemu(
    hv: bough.Hypervisor, small: str, hardware: dict[str, Any], bough_home: Home, gone: list[bough.Machine]
) -> None:
    """A cold boot by bough, to the agent's answer, and by plain QEMU, to the line that the guest prints."""
    disk = next(bough_home.image(image.digest).disk for image in hv.images() if small in image.labels)
    ours, plain = [], []
    for number in range(_ROUNDS):
        machine = hv.create(small, name=f"boot-{number}", **hardware)
        gone.append(machine)
        ours.append(seconds(machine.start))
        model = machine.info().hardware["cpu_model"]
        pid = qemus(bough_home)[machine.id]
        print(f"memory of a first boot: {_memory(pid, machine.info().memory_bytes)}")
        machine.delete(force=True)
        gone.clear()
        plain.append(seconds(lambda cpu=model: _boot_plain(disk, cpu)))
    told("cold boot, bough", ours)
    told("cold boot, plain QEMU", plain)
    print(f"ratio {statistics.median(ours) / statistics.median(plain):.2f}")


def _boot_plain(disk: Path, cpu: str) -> None:
    qemu = shutil.which("qemu-system-x86_64") or "qemu-system-x86_64"
    drive = ["-drive", f"file={disk},format=raw,if=virtio,snapshot=on", "-cpu", cpu]
    with subprocess.Popen(
        [qemu, *_PLAIN, *drive], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if b"small guest is up" in line:
                break
        process.kill()


@pytest.mark.users("root")
def test_what_a_fork_costs(hv: bough.Hypervisor, booted: bough.Snapshot, bough_home: Home) -> None:
    """Time, processes, exits and memory pages of forks on the way to their first answer."""
    times, first = [], []
    for _ in range(_ROUNDS):
        before = _counters()
        began = time.monotonic()
        machine = booted.fork()
        times.append(time.monotonic() - began)
        after = _counters()
        first.append(seconds(lambda one=machine: one.exec("true", check=True)))
        wanted = (
            "processes",
            "exits",
            "pf_taken",
            "pf_fixed",
            "halt_exits",
            "io_exits",
            "mmio_exits",
            "irq_injections",
        )
        print({name: after.get(name, 0) - before.get(name, 0) for name in wanted})
        pid = qemus(bough_home)[machine.id]
        print(f"pages: {_memory(pid, machine.info().memory_bytes)}; service pid {service_pid(bough_home)}")
        print(f"snapshot of a fork: pause {machine.snapshot().info().pause_ms} ms")
        machine.discard()
    told("fork, to its answer", times)
    told("first command in a fork", first)
    machine = booted.fork()
    again = [seconds(lambda: machine.exec("true", check=True)) for _ in range(5)]
    told("later commands", again)
    machine.discard()


def _counters() -> dict[str, int]:
    """Return KVM's counters, of all virtual machines together, and the number of processes begun so far."""
    lines = Path("/proc/stat").read_text().splitlines()
    found = {"processes": next(int(line.split()[1]) for line in lines if line.startswith("processes "))}
    for path in _COUNTERS.iterdir() if _COUNTERS.exists() else ():
        if path.is_file():
            found[path.name] = int(path.read_text())
    return found


def _memory(pid: int, memory_bytes: int) -> dict[str, int]:
    """Return the KiB of the guest's RAM in the QEMU process: present, and written since the snapshot."""
    found: dict[str, int] = {}
    size = None
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "Size":
            size = int(value.split()[0]) * 1024
        elif size == memory_bytes and name in ("Rss", "Private_Dirty", "AnonHugePages", "KernelPageSize"):
            found[name] = found.get(name, 0) + int(value.split()[0])
    return found
