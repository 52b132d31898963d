"""Cold boot: the time from the call to a guest that answers."""

from __future__ import annotations

import time
from collections.abc import Callable

from bench.harness import Bench
from bench.machine import a_guest
from bench.peer import boot_to_login, stock_image

ABOUT = "from a stopped machine to one that answers, against QEMU to the login prompt of a stock image"
VCPUS, MEMORY_MIB = 2, 1024


def run(bench: Bench) -> None:
    image = stock_image()
    with a_guest("bench-boot", vcpus=VCPUS, memory=f"{MEMORY_MIB}MiB") as (_, machine):
        accelerator = machine.info().accelerator or "tcg"
        machine.stop()

        def ours() -> float:
            taken = timed(machine.start)
            machine.stop()  # only one of the two guests may run
            return taken

        bench.in_turns(
            f"cold boot, {accelerator}, {VCPUS} vcpus, {MEMORY_MIB} MiB",
            ours=ours,
            peer=lambda: boot_to_login(image, accelerator=accelerator, vcpus=VCPUS, memory_mib=MEMORY_MIB),
            what=("bough: its own boot loader, to an answered ping", "qemu -kernel -initrd, to login:"),
            rounds=5,
        )


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
