"""Cold boot: from the call to a guest that answers."""

from __future__ import annotations

from bench.harness import Bench
from bench.machine import IMAGE, a_home, connected
from bench.peer import boot_to_login, stock_image

ABOUT = "from a stopped machine to one that answers, against QEMU to the login prompt of a stock image"
VCPUS, MEMORY_MIB = 2, 1024


def run(bench: Bench) -> None:
    peer_image = stock_image()
    with a_home() as home, connected(home) as hv:
        hv.build_image(IMAGE)
        machine = hv.create(IMAGE, name="bench-boot", vcpus=VCPUS, memory=f"{MEMORY_MIB}MiB")
        machine.start()
        accelerator = machine.info().accelerator
        machine.stop(force=False)

        def ours() -> None:
            machine.start()

        def peer() -> float:
            # In turns means that only one of them runs.
            machine.stop()
            return boot_to_login(peer_image, accelerator=accelerator, vcpus=VCPUS, memory_mib=MEMORY_MIB)

        bench.in_turns(
            f"cold boot, {accelerator}, {VCPUS} vcpus, {MEMORY_MIB} MiB",
            ours=ours,
            peer=peer,
            what=("start of a stopped machine, own boot loader, to an answered ping", "qemu -kernel, to login:"),
            rounds=5,
        )
        machine.delete(force=True)
