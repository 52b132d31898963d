"""Suspend and resume: write memory to disk, end QEMU, and continue until the guest answers."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from bench.harness import Bench
from bench.machine import a_guest, at_rest
from bench.peer import SavedGuest, stock_image

if TYPE_CHECKING:
    from bough import Machine

ABOUT = "vm.resume() of a suspended Debian of 1 GiB until it answers, against QEMU's loadvm of such a guest"
ROUNDS = 8


def run(bench: Bench) -> None:
    with a_guest("bench-suspend", memory="1GiB") as (_, machine):
        at_rest(machine)
        info = machine.info()
        suspended: list[float] = []
        with SavedGuest(stock_image(), info.accelerator or "tcg", info.vcpus, 1024) as peer:
            bench.in_turns(
                "resume",
                ours=lambda: resumed(machine, suspended),
                peer=peer.restore,
                what=("vm.resume(), to an answered ping", "qemu -loadvm, to a login prompt that answers"),
                rounds=ROUNDS,
                warm_ups=1,
            )
        middle = sorted(suspended)[len(suspended) // 2]
        bench.note(f"vm.suspend(): {middle * 1000:.0f} ms, at most {max(suspended) * 1000:.0f}")


def resumed(machine: Machine, suspended: list[float]) -> float:
    started = time.perf_counter()
    machine.suspend()
    suspended.append(time.perf_counter() - started)
    time.sleep(0.5)  # let the host's disk finish the writes of the suspension
    started = time.perf_counter()
    machine.resume()
    machine.ping()
    return time.perf_counter() - started
