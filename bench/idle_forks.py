"""Forks of a prepared snapshot: the time to the first command, and the memory of idle forks."""

from __future__ import annotations

import time
from statistics import median

import bough
from bench.fork import private_mib
from bench.harness import Bench
from bench.machine import AT_EASE_S

_ROUNDS, _FORKS, _COMMANDS = 8, 5, 20
#: An idle guest needs so long until its memory no longer grows.
_IDLE_S = 60


def measure_forks(bench: Bench, snapshot: bough.Snapshot) -> None:
    """Note the figures. The pre-warm of the snapshot is complete. No fork is left."""
    taken = [_fork_ms(snapshot) for _ in range(_ROUNDS)]
    bench.note(f"fork with its first command: {median(taken):.0f} ms ({min(taken):.0f} to {max(taken):.0f})")
    forks = snapshot.fork(count=_FORKS, ephemeral=True)
    try:
        time.sleep(_IDLE_S)
        used = [private_mib(fork.info().pid) for fork in forks]
        bench.note(
            f"{_FORKS} idle forks: {sum(used) / len(used):.0f} MiB of own memory each, "
            f"the largest {max(used):.0f} (at most 25 MiB)"
        )
        bench.note(f"exec: {median(_exec_ms(forks[0]) for _ in range(_COMMANDS)):.0f} ms")
    finally:
        for fork in forks:
            fork.delete(force=True)


def _fork_ms(snapshot: bough.Snapshot) -> float:
    time.sleep(AT_EASE_S)
    began = time.perf_counter()
    with snapshot.fork(ephemeral=True) as fork:
        fork.exec("true", check=True)
        return (time.perf_counter() - began) * 1000


def _exec_ms(machine: bough.Machine) -> float:
    began = time.perf_counter()
    machine.exec("true", check=True)
    return (time.perf_counter() - began) * 1000
