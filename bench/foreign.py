"""An imported Alpine with the agent from the agent disk: import, boot, forks and their memory, exec."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from statistics import median

from tests.guests.disks import guest_disk

import bough
from bench.fork import private_mib
from bench.harness import Bench
from bench.machine import AT_EASE_S, run_bough, wait_for_prewarm

ABOUT = "Alpine 3.23 of 256 MiB, imported, with the agent from the agent disk"
LABEL, PLAIN = "bench-alpine", "bench-alpine-plain"
_ROUNDS, _FORKS = 7, 5
#: An idle guest needs so long until its memory no longer grows.
_IDLE_S = 60


def run(bench: Bench) -> None:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as place:
        disk = guest_disk("alpine", Path(place))
        bench.in_turns(
            "import",
            ours=lambda: run_bough("image", "import", disk, "--name", LABEL),
            peer=lambda: run_bough("image", "import", disk, "--name", PLAIN, "--no-agent"),
            what=("with the agent installed (at most 1.5)", "--no-agent"),
            rounds=5,
            warm_ups=1,
        )
    try:
        _measure(bench, bough.connect())
    finally:
        run_bough("image", "delete", LABEL)
        run_bough("image", "delete", PLAIN)


def _measure(bench: Bench, hypervisor: bough.Hypervisor) -> None:
    machine = hypervisor.create(LABEL, name=LABEL, memory="256MiB")
    try:
        began = time.monotonic()
        machine.start()
        answered = time.monotonic() - began
        machine.wait("booted", timeout=300)
        booted = time.monotonic() - began
        bench.note(f"the agent answers after {answered:.1f} s, the boot ends after {booted:.1f} s")
        snapshot = machine.snapshot()
    finally:
        machine.delete(force=True)
    try:
        wait_for_prewarm(hypervisor)
        _measure_forks(bench, snapshot)
    finally:
        snapshot.delete()


def _measure_forks(bench: Bench, snapshot: bough.Snapshot) -> None:
    taken = []
    for _ in range(_ROUNDS):
        time.sleep(AT_EASE_S)
        began = time.monotonic()
        with snapshot.fork(ephemeral=True) as fork:
            fork.exec("true", check=True)
            taken.append((time.monotonic() - began) * 1000)
    bench.note(
        f"a fork of a pre-warmed snapshot with its first command: {median(taken):.0f} ms "
        f"({min(taken):.0f} to {max(taken):.0f})"
    )
    forks = snapshot.fork(count=_FORKS, ephemeral=True)
    time.sleep(_IDLE_S)
    used = [private_mib(fork.info().pid) for fork in forks]
    bench.note(
        f"{_FORKS} idle forks: {sum(used) / len(used):.0f} MiB of own memory each, "
        f"the largest {max(used):.0f} (at most 25 MiB)"
    )
    bench.note(f"exec: {median(_exec_ms(forks[0]) for _ in range(20)):.0f} ms")
    for fork in forks:
        fork.delete(force=True)


def _exec_ms(machine: bough.Machine) -> float:
    began = time.monotonic()
    machine.exec("true", check=True)
    return (time.monotonic() - began) * 1000
