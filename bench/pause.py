"""Snapshots of a machine that runs on: how long it stands still, against what it has written."""

from __future__ import annotations

from bench.harness import Bench
from bench.machine import a_guest, at_rest

ABOUT = "how long a machine of 4 GiB stands still for a snapshot, by how much it has written since the last"
WRITTEN_MIB = (0, 8, 32, 128, 512, 1024)


def run(bench: Bench) -> None:
    with a_guest("bench-pause", memory="4GiB") as (_, machine):
        at_rest(machine)
        first = machine.snapshot()
        bench.note(f"freshly booted: {first.info().pause_ms:.0f} ms")
        points = []
        snapshots = [first]
        # Of a fork: the parent has no template to compare with, a fork writes beside its own.
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
