"""An imported Alpine with the agent from the agent disk: import, boot, forks and their memory, exec."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from tests.guests.disks import guest_disk

import bough
from bench.harness import Bench
from bench.idle_forks import measure_forks
from bench.machine import run_bough, wait_for_prewarm

ABOUT = "Alpine 3.23 of 256 MiB, imported, with the agent from the agent disk"
LABEL, PLAIN = "bench-alpine", "bench-alpine-plain"


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
        measure_forks(bench, snapshot)
    finally:
        snapshot.delete()
