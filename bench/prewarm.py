"""Cost and benefit of pre-warming: the same loops with pre-warming, and with BOUGH_PROCESS_IMAGES=off."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import bough
from bench.harness import Bench, Work
from bench.machine import a_guest, at_rest

if TYPE_CHECKING:
    from bough import Snapshot

ABOUT = "snapshots and forks of a running Debian of 512 MiB, with pre-warming against without"
NAME = "bench-prewarm"
ROUNDS = 5
#: Moments after a snapshot at which a pre-warm may be under way.
MOMENTS_S = (0.0, 1.2, 2.0, 3.0)


def run(bench: Bench) -> None:
    with a_guest(NAME, memory="512MiB") as (_, machine):
        at_rest(machine)
        machine.snapshot().delete()  # the first snapshot copies all memory
        compare(bench, "snapshot, then 10 times fork, exec, delete", loop(10))
        compare(bench, "snapshot, then 40 times fork, exec, delete", loop(40))
        compare(bench, "snapshot, then 20 forks of one call", many)
        for moment_s in MOMENTS_S:
            compare(
                bench, f"fork and first command, {moment_s:.1f} s after the snapshot", one_after(moment_s)
            )
        os.environ.pop("BOUGH_PROCESS_IMAGES", None)
        bough.connect().shutdown()


def compare(
    bench: Bench, name: str, work: Callable[[Snapshot], float], *, with_snapshot: bool = True
) -> None:
    ours, peer = (turn(switch, work, with_snapshot=with_snapshot) for switch in ("on", "off"))
    bench.in_turns(name, ours=ours, peer=peer, what=("pre-warming on", "pre-warming off"), rounds=ROUNDS)


def turn(switch: str, work: Callable[[Snapshot], float], *, with_snapshot: bool) -> Work:
    """Return a work that restarts the service first: the service reads the switch at its start."""

    def done() -> float:
        bough.connect().shutdown()
        os.environ["BOUGH_PROCESS_IMAGES"] = switch
        machine = bough.connect().machine(NAME)
        machine.exec("true", check=True)
        time.sleep(1)
        began = time.perf_counter()
        snapshot = machine.snapshot()
        taken_s = time.perf_counter() - began
        try:
            return work(snapshot) + (taken_s if with_snapshot else 0.0)
        finally:
            snapshot.delete()

    return done


def loop(count: int) -> Callable[[Snapshot], float]:
    def work(snapshot: Snapshot) -> float:
        began = time.perf_counter()
        for _ in range(count):
            use(snapshot)
        return time.perf_counter() - began

    return work


def many(snapshot: Snapshot) -> float:
    began = time.perf_counter()
    forks = snapshot.fork(count=20, ephemeral=True)
    took = time.perf_counter() - began
    for fork in forks:
        fork.discard()
    return took


def one_after(moment_s: float) -> Callable[[Snapshot], float]:
    def work(snapshot: Snapshot) -> float:
        time.sleep(moment_s)
        began = time.perf_counter()
        use(snapshot)
        return time.perf_counter() - began

    return work


def use(snapshot: Snapshot) -> None:
    with snapshot.fork(ephemeral=True) as fork:
        fork.exec("true", check=True)
