"""Helpers of the benchmarks: a BOUGH_HOME, the command, a running guest."""

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
#: Seconds after a fork until its follow-up work is done: the fork is deleted, the next begun
#: (forks/loaded.py).
AT_EASE_S = 2.5
BOUGH = Path(sys.executable).parent / "bough"


@contextmanager
def a_guest(name: str, **spec: object) -> Iterator[tuple[Hypervisor, Machine]]:
    """Yield a running machine of the default home; delete it afterwards."""
    hypervisor = bough.connect()
    hypervisor.build_image(IMAGE)
    machine = hypervisor.create(IMAGE, name=name, **spec)
    try:
        machine.start()
        yield hypervisor, machine
    finally:
        machine.delete(force=True)


def at_rest(machine: Machine) -> None:
    """Wait until the guest's boot is over. Forks of a booting machine would all continue the boot."""
    machine.wait("booted", timeout=300)
    time.sleep(5)


def run_bough(*words: str | Path, home: Path | None = None) -> str:
    """Run the command and return its standard output. The command must succeed."""
    env = os.environ | ({"BOUGH_HOME": str(home)} if home else {})
    command = [str(BOUGH), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=env).stdout


def wait_for_prewarm(hypervisor: Hypervisor, timeout_s: float = 120) -> None:
    """Wait until the snapshot of the last fork or run is pre-warmed; later forks continue from a process
    image, if this host supports process images.
    """
    begun, started = False, time.monotonic()
    while time.monotonic() - started < (timeout_s if begun else 10):
        records = (
            path.read_text(errors="replace") for path in hypervisor.home.machines.glob("*/machine.json")
        )
        is_prewarming = any('"prewarm-' in record for record in records)
        if begun and not is_prewarming:
            return
        begun |= is_prewarming
        time.sleep(0.2)


def wait_for_standby(hypervisor: Hypervisor, timeout_s: float = 600) -> None:
    """Wait until all requested standby machines are ready. Raises RuntimeError at the time-out."""
    deadline = time.monotonic() + timeout_s
    while not all(entry["ready"] == entry["count"] for entry in hypervisor.standby_machines()):
        if time.monotonic() > deadline:
            raise RuntimeError(f"no standby machine became ready: {hypervisor.standby_machines()}")
        time.sleep(0.2)
