"""Figures of boots and forks on KVM, beside plain QEMU in the same run.

The figures are printed only: nested times mean little.
"""

from __future__ import annotations

import re
import shutil
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import bough
from bough.paths import Home
from tests.kvm.patience import BOOT_S
from tests.kvm.plain_qemu import PlainQemu
from tests.kvm.small_guest import SmallGuest
from tests.torture.processes import qemus, service_pid

_ROUNDS = 3
_COUNTERS = Path("/sys/kernel/debug/kvm")
_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def seconds(work: Callable[[], Any]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began


def told(what: str, times: list[float]) -> float:
    print(
        f"{what}: median {statistics.median(times):.2f} s of {[round(each, 2) for each in times]}", flush=True
    )
    return statistics.median(times)


@pytest.mark.users("root")
def test_boot_beside_plain_qemu(
    hv: bough.Hypervisor,
    small: str,
    files: SmallGuest,
    hardware: dict[str, Any],
    gone: list[bough.Machine],
    tmp_path: Path,
) -> None:
    """A cold boot by bough, to the agent's answer, and by plain QEMU, to the line that the guest prints. Both
    boot from the disk.
    """
    ours, plain = [], []
    for number in range(_ROUNDS):
        machine = hv.create(small, name=f"boot-{number}", **hardware)
        gone.append(machine)
        ours.append(seconds(partial(machine.start, timeout=BOOT_S)))
        model = machine.info().hardware["cpu_model"]
        machine.delete(force=True)
        gone.clear()
        with PlainQemu(tmp_path, model, disk=files.disk) as peer:
            plain.append(peer.wait(b"small guest is up"))
    ratio = told("cold boot, bough", ours) / told("cold boot, plain QEMU", plain)
    print(f"ratio {ratio:.2f}")


@pytest.mark.users("root")
def test_fork_beside_loadvm_and_a_cold_boot(
    booted: bough.Snapshot,
    files: SmallGuest,
    hv: bough.Hypervisor,
    small: str,
    hardware: dict[str, Any],
    tmp_path: Path,
) -> None:
    """A fork and a run until they answer; plain QEMU's loadvm and its boot by kernel and initrd, until the
    guest prints.
    """
    first_s = seconds(lambda: hv.run(small, timeout=BOOT_S, **hardware).discard())
    print(f"first run, with a boot and a snapshot: {first_s:.1f} s")
    child = booted.fork()
    model = child.info().hardware["cpu_model"]
    child.discard()
    cold, loaded, forks, runs = [], [], [], []
    for number in range(_ROUNDS):
        with PlainQemu(tmp_path, model, direct=files) as plain:
            cold.append(plain.wait(b"tick"))
            if number == 0:
                plain.monitor("savevm booted")
    for _ in range(_ROUNDS):
        with PlainQemu(tmp_path, model, direct=files, load="booted") as plain:
            loaded.append(plain.wait(b"tick"))
        began = time.monotonic()
        machine = booted.fork()
        forks.append(time.monotonic() - began)
        machine.discard()
        runs.append(seconds(lambda: hv.run(small, timeout=BOOT_S, **hardware).discard()))
    ours, peer, boot = told("fork", forks), told("loadvm", loaded), told("cold boot, plain QEMU", cold)
    run_s = told("later run, with its deletion", runs)
    print(f"fork {ours / peer:.2f} of loadvm, {ours / boot:.2f} of a cold boot; run {run_s / boot:.2f}")


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
            *("processes", "exits", "pf_taken", "pf_fixed", "halt_exits", "io_exits", "mmio_exits"),
            "irq_injections",
        )
        print({name: after.get(name, 0) - before.get(name, 0) for name in wanted})
        pid = qemus(bough_home)[machine.id]
        print(f"pages: {_memory(pid, machine.info().memory_bytes)}; service pid {service_pid(bough_home)}")
        print(f"snapshot of a fork: pause {machine.snapshot().info().pause_ms} ms", flush=True)
        machine.discard()
    told("fork, to its answer", times)
    told("first command in a fork", first)
    machine = booted.fork()
    again = [seconds(lambda: machine.exec("true", check=True)) for _ in range(5)]
    told("later commands", again)
    machine.discard()


@pytest.mark.users("root")
def test_system_calls_of_a_fork(hv: bough.Hypervisor, booted: bough.Snapshot, tmp_path: Path) -> None:
    """System calls of the whole host while a fork is made, counted by the kernel: strace would stop QEMU at
    each of them for longer than bough waits.
    """
    if shutil.which("perf") is None:
        pytest.skip("no perf on this host")
    booted.fork().discard()  # what only the first fork does
    summary = tmp_path / "calls"
    fork = [sys.executable, "-m", "bough", "fork", booted.id, "traced"]
    subprocess.run(["perf", "trace", "-s", "-a", "-o", summary, "--", *fork], cwd=tmp_path, check=True)
    hv.machine("traced").discard()
    by_program, by_call = count_calls(summary.read_text())
    print(f"system calls by program: {by_program.most_common(12)}")
    print(f"by name: {by_call.most_common(24)}")
    assert by_call["openat"] > 0, summary.read_text()[:2000]


def count_calls(summary: str) -> tuple[Counter[str], Counter[str]]:
    """Return the system calls by program and by name, from the summary of perf trace."""
    by_program: Counter[str] = Counter()
    by_call: Counter[str] = Counter()
    program = ""
    for line in summary.splitlines():
        head = re.match(r"^ (\S.*) \(\d+\), \d+ events", line)
        row = re.match(r"^ {2,}(\w+) +(\d+) +\d", line)
        if head is not None:
            program = head[1]
        elif row is not None:
            by_program[program] += int(row[2])
            by_call[row[1]] += int(row[2])
    return by_program, by_call


@pytest.mark.users("root")
def test_exits_of_a_fork(hv: bough.Hypervisor, booted: bough.Snapshot, tmp_path: Path) -> None:
    """perf kvm stat while a fork is made: exits by reason."""
    if shutil.which("perf") is None:
        pytest.skip("no perf on this host")
    booted.fork().discard()
    data = tmp_path / "exits"
    fork = [sys.executable, "-m", "bough", "fork", booted.id, "exits"]
    subprocess.run(["perf", "kvm", "stat", "record", "-a", "-o", data, "--", *fork], cwd=tmp_path, check=True)
    hv.machine("exits").discard()
    argv = ["perf", "kvm", "-i", data, "stat", "report"]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, check=False)
    told = done.stdout + done.stderr
    print(told[:3000])
    assert re.search(r"^Total Samples:\s*[1-9]", told, re.MULTILINE), told


@pytest.mark.users("root")
@pytest.mark.parametrize("mode", ["always", "never"])
def test_huge_pages_of_a_first_boot(
    hv: bough.Hypervisor,
    small: str,
    hardware: dict[str, Any],
    bough_home: Home,
    gone: list[bough.Machine],
    mode: str,
) -> None:
    """Huge pages of the host below a first boot, and what they do to its snapshot and forks."""
    with _huge_pages(mode):
        machine = hv.create(small, name=f"huge-{mode}", **hardware)
        gone.append(machine)
        boot_s = seconds(partial(machine.start, timeout=BOOT_S))
        pages = _memory(qemus(bough_home)[machine.id], machine.info().memory_bytes)
        snapshot = machine.snapshot()
        info = snapshot.info()
        stored_mib = (info.memory or {})["stored_bytes"] >> 20
        print(f"{mode}: boot {boot_s:.1f} s, {pages}, pause {info.pause_ms} ms, {stored_mib} MiB stored")
        times = []
        for _ in range(_ROUNDS):
            began = time.monotonic()
            child = snapshot.fork()
            times.append(time.monotonic() - began)
            pages = _memory(qemus(bough_home)[child.id], machine.info().memory_bytes)
            child.discard()
        told(f"{mode}: fork ({pages})", times)
        snapshot.delete()


@contextmanager
def _huge_pages(mode: str) -> Iterator[None]:
    before = re.search(r"\[(\w+)\]", _HUGE_PAGES.read_text()) if _HUGE_PAGES.exists() else None
    if before is None:
        pytest.skip("this kernel has no transparent huge pages")
    _HUGE_PAGES.write_text(mode)
    try:
        yield
    finally:
        _HUGE_PAGES.write_text(before[1])


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
