"""Snapshots of a running machine: the pause, by the memory that the guest has written."""

from __future__ import annotations

from bench.harness import Bench
from bench.machine import a_guest, at_rest

ABOUT = "pause of a 4 GiB machine for a snapshot, by memory written since the last snapshot"
WRITTEN_MIB = (0, 8, 32, 128, 512, 1024)


def run(bench: Bench) -> None:
    with a_guest("bench-pause", memory="4GiB") as (_, machine):
        at_rest(machine)
        first = machine.snapshot()
        bench.note(f"freshly booted: {first.info().pause_ms:.0f} ms")
        points = []
        snapshots = [first]
        # Snapshots of a fork: a fork has a template to compare its memory with, the parent has none.
        fork = first.fork(ephemeral=True)
        try:
            for written in WRITTEN_MIB:
                fork.shell(f"head -c {written}M /dev/urandom > /dev/shm/{written}", check=True)
                taken = fork.snapshot()
                snapshots.append(taken)
                points.append((float(written), float(taken.info().pause_ms or 0)))
        finally:
            fork.discard()
        bench.curve("pause", "MiB written since the last snapshot, at the least", "ms", points)
        for snapshot in reversed(snapshots):
            snapshot.delete()
