"""Forks of a snapshot: how long until they answer, and what each holds in memory."""

from __future__ import annotations

import time
from pathlib import Path

from bench.harness import Bench
from bench.machine import a_guest

ABOUT = "forks of a snapshot of a running 1 GiB Debian, each with an identity of its own"
COUNT = 20


def run(bench: Bench) -> None:
    with a_guest("bench-fork", memory="1GiB") as (_, machine):
        machine.shell(
            'while [ "$(systemctl is-system-running)" = starting ]; do sleep 0.2; done', check=False
        )
        snapshot = machine.snapshot()
        bench.note(f"the machine stood still for {snapshot.info().pause_ms} ms")

        def one(identity: str) -> float:
            started = time.perf_counter()
            fork = snapshot.fork(identity=identity, ephemeral=True)  # type: ignore[arg-type]
            taken = time.perf_counter() - started
            fork.discard()
            return taken

        for identity in ("new", "keep"):
            bench.in_turns(
                f"a fork, identity {identity}",
                ours=lambda identity=identity: one(identity),  # type: ignore[misc]
                peer=None,
                what=(f"snapshot.fork(identity='{identity}')", ""),
                rounds=10,
                warm_ups=1,
            )
        started = time.perf_counter()
        forks = snapshot.fork(count=COUNT, ephemeral=True)
        taken = time.perf_counter() - started
        bench.note(f"{COUNT} forks: {taken:.2f} s, {taken / COUNT * 1000:.0f} ms each")
        time.sleep(10)
        private = sorted(_private_mib(fork.info().pid) for fork in forks)
        bench.note(f"private memory of one: {private[len(private) // 2]:.0f} MiB, at most {private[-1]:.0f}")
        for fork in forks:
            fork.discard()
        snapshot.delete()


def _private_mib(pid: int | None) -> float:
    rows = [line.split() for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()]
    kib = {row[0]: int(row[1]) for row in rows if len(row) == 3}
    return (kib["Private_Clean:"] + kib["Private_Dirty:"]) / 1024
