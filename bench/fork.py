"""Forks of a snapshot: time until they answer, by memory, depth and number, and memory of each fork."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Literal

from bench.harness import Bench
from bench.machine import AT_EASE_S, a_guest, at_rest, wait_for_prewarm, wait_for_standby
from bench.peer import SavedGuest, stock_image

if TYPE_CHECKING:
    from bough import Hypervisor, Machine, Snapshot

ABOUT = "forks of a snapshot of a running Debian, each with an identity of its own, against QEMU's loadvm"
MEMORIES_GIB = (1, 2, 4, 8)
COUNTS = (1, 5, 10, 20, 100)
DEPTH = 20
STANDBY = 20
#: Share of a processor for each fork. A fork below it is idle.
AT_REST = 0.005


def run(bench: Bench) -> None:
    for gib in MEMORIES_GIB:
        with a_guest("bench-fork", memory=f"{gib}GiB") as (hypervisor, machine):
            at_rest(machine)
            at_once(bench, machine, gib)
            if gib == 1:
                afresh(bench, machine)
            snapshot = machine.snapshot()
            taken_at = time.perf_counter()
            wait_for_prewarm(hypervisor)
            bench.note(
                f"{gib} GiB, a snapshot is pre-warmed: {time.perf_counter() - taken_at:.1f} s after it"
            )
            time.sleep(AT_EASE_S)
            bench.note(f"{gib} GiB, its first fork then: {one(snapshot) * 1000:.0f} ms")
            if gib == 1:
                beside_loadvm(bench, machine, snapshot)
                by_count(bench, snapshot)
                by_depth(bench, snapshot)
                that_stand_by(bench, hypervisor, snapshot)
            taken = sorted(one(snapshot) for _ in range(5))
            bench.curve("fork by memory", "GiB of the guest", "ms", [(float(gib), taken[2] * 1000)])
            snapshot.delete()


def at_once(bench: Bench, machine: Machine, gib: int) -> None:
    """Fork a snapshot at once, before anything has been prepared for a fork."""
    snapshot = machine.snapshot()
    bench.note(f"{gib} GiB, a fork just after the snapshot: {one(snapshot) * 1000:.0f} ms")
    snapshot.delete()


def afresh(bench: Bench, machine: Machine) -> None:
    """Make many forks in one call, from a new snapshot without earlier forks."""
    for count in (20, 100):
        snapshot = machine.snapshot()
        started = time.perf_counter()
        forks = snapshot.fork(count=count, ephemeral=True, timeout=900)
        bench.note(f"{count} forks of one call, of a new snapshot: {time.perf_counter() - started:.1f} s")
        for fork in forks:
            fork.discard()
        snapshot.delete()
        time.sleep(3)


def one(snapshot: Snapshot, identity: Literal["new", "keep"] = "new") -> float:
    started = time.perf_counter()
    fork = snapshot.fork(identity=identity, ephemeral=True)
    taken = time.perf_counter() - started
    fork.discard()
    time.sleep(AT_EASE_S)
    return taken


def beside_loadvm(bench: Bench, machine: Machine, snapshot: Snapshot) -> None:
    info = machine.info()
    with SavedGuest(stock_image(), info.accelerator or "tcg", info.vcpus, 1024) as peer:
        for identity in ("new", "keep"):
            bench.in_turns(
                f"a fork, identity {identity}",
                ours=lambda identity=identity: one(snapshot, identity),  # type: ignore[misc]
                peer=peer.restore,
                what=(
                    f"snapshot.fork(identity='{identity}')",
                    "qemu -loadvm, to a login prompt that answers",
                ),
                rounds=8,
                warm_ups=1,
            )


def by_count(bench: Bench, snapshot: Snapshot) -> None:
    points = []
    for count in COUNTS:
        started = time.perf_counter()
        forks = [
            fork
            for fork in snapshot.fork(count=count, ephemeral=True, timeout=900)
            if not isinstance(fork, Exception)
        ]
        points.append((float(count), time.perf_counter() - started))
        if count == COUNTS[-1]:
            what_they_hold(bench, forks)
        for fork in forks:
            fork.discard()
        time.sleep(3)
    bench.curve("forks of one call", "number of forks", "s until all have answered", points)


def what_they_hold(bench: Bench, forks: list[Machine]) -> None:
    """Measure memory and idle load of forks, after the services that a new hostname wakes are idle again."""
    pids = [fork.info().pid for fork in forks]
    for _ in range(30):
        before = [_cpu_s(pid) for pid in pids]
        time.sleep(10)
        used = sorted((_cpu_s(pid) - was) / 10 for pid, was in zip(pids, before, strict=True))
        if sum(used) < AT_REST * len(forks):
            break
    held = sorted(private_mib(pid) for pid in pids)
    middle = len(forks) // 2
    bench.note(f"{len(forks)} forks, each in memory: {held[middle]:.0f} MiB, at most {held[-1]:.0f}")
    bench.note(f"processor share of each, idle: {used[middle]:.1%}, at most {used[-1]:.1%}")


def by_depth(bench: Bench, snapshot: Snapshot) -> None:
    """Fork a fork of a fork, and so on."""
    points = []
    with ExitStack() as stack:
        source = snapshot
        for depth in range(1, DEPTH + 1):
            points.append((float(depth), one(source) * 1000))
            fork = source.fork(ephemeral=True)
            stack.callback(fork.discard)
            source = fork.snapshot()
            stack.callback(source.delete)
            fork.discard()
    bench.curve("fork by depth", "forks below the first", "ms", points)


def that_stand_by(bench: Bench, hypervisor: Hypervisor, snapshot: Snapshot) -> None:
    """Fork a snapshot with standby machines."""
    snapshot.keep_standby(1)
    taken = []
    for _ in range(8):
        wait_for_standby(hypervisor)
        taken.append(one(snapshot))
    bench.note(
        f"fork from a standby machine: {min(taken) * 1000:.0f} ms at best, {median(taken) * 1000:.0f} median"
    )
    snapshot.keep_standby(STANDBY)
    wait_for_standby(hypervisor)
    started = time.perf_counter()
    forks = snapshot.fork(count=STANDBY, ephemeral=True, timeout=900)
    bench.note(f"{STANDBY} forks of one call, from standby machines: {time.perf_counter() - started:.2f} s")
    snapshot.keep_standby(0)
    for fork in forks:
        fork.discard()


def private_mib(pid: int | None) -> float:
    """Return the memory that no other process shares. "Anonymous" in proc(5) is written memory: the guest's
    pages and QEMU's translations. "Private" also counts a page of the template that only one fork has read
    so far.
    """
    rows = [line.split() for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()]
    kib = {row[0]: int(row[1]) for row in rows if len(row) == 3}
    return kib["Anonymous:"] / 1024


def _cpu_s(pid: int | None) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100
