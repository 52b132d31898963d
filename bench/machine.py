"""What the benchmarks share of bough: a BOUGH_HOME, the command, a running guest."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import bough

if TYPE_CHECKING:
    from bough import Hypervisor, Machine

IMAGE = "debian:12"
#: By then what a fork leaves to be done is done: it is gone, the next is begun (snapshots/ahead.py).
AT_EASE_S = 2.5
BOUGH = Path(sys.executable).parent / "bough"


@contextmanager
def a_guest(name: str, **spec: object) -> Iterator[tuple[Hypervisor, Machine]]:
    """A running machine of the default home, deleted afterwards."""
    hypervisor = bough.connect()
    hypervisor.build_image(IMAGE)
    machine = hypervisor.create(IMAGE, name=name, **spec)
    try:
        machine.start()
        yield hypervisor, machine
    finally:
        machine.delete(force=True)


def at_rest(machine: Machine) -> None:
    """Until its boot is over: forks of a machine in the middle of it would all go on with that."""
    machine.wait("booted", timeout=300)
    time.sleep(5)


def run_bough(*words: str | Path, home: Path | None = None) -> str:
    """Standard output of the command; it must succeed."""
    env = os.environ | ({"BOUGH_HOME": str(home)} if home else {})
    command = [str(BOUGH), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=env).stdout


def wait_for_rehearsal(hypervisor: Hypervisor, timeout_s: float = 120) -> None:
    """Of what was just forked or run: what comes after goes on from a frozen process, where there are any."""
    begun, started = False, time.monotonic()
    while time.monotonic() - started < (timeout_s if begun else 10):
        records = (
            path.read_text(errors="replace") for path in hypervisor.home.machines.glob("*/machine.json")
        )
        is_rehearsing = any('"rehearsal-' in record for record in records)
        if begun and not is_rehearsing:
            return
        begun |= is_rehearsing
        time.sleep(0.2)


def wait_for_spares(hypervisor: Hypervisor, timeout_s: float = 600) -> None:
    """Until all that are wanted stand by. RuntimeError if they do not come."""
    deadline = time.monotonic() + timeout_s
    while not all(entry["ready"] == entry["count"] for entry in hypervisor.spares()):
        if time.monotonic() > deadline:
            raise RuntimeError(f"no spare came: {hypervisor.spares()}")
        time.sleep(0.2)
