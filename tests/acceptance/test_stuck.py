"""A guest whose kernel changes its own code does not hang forever, whatever QEMU has translated."""

from __future__ import annotations

import bough
from tests.waiting import wait_until

SWITCH = "/proc/sys/kernel/sched_schedstats"
#: Each setting patches a dozen places of the scheduler, which the other vCPU executes meanwhile.
PROGRAM = f"""
import os
switch = os.open({SWITCH!r}, os.O_WRONLY)
for number in range(1 << 30):
    os.pwrite(switch, b"10"[number % 2 : number % 2 + 1], 0)
    if number % 50 == 0:
        with open("/dev/shm/new", "w") as file:
            file.write(str(number))
        os.rename("/dev/shm/new", "/dev/shm/switched")
"""
SWITCHES = 1500


def test_a_kernel_that_patches_itself(hv: bough.Hypervisor, booted: bough.Snapshot) -> None:
    with booted.fork("patching", ephemeral=True) as machine:
        assert machine.info().vcpus > 1
        machine.write_file("/root/switch.py", PROGRAM)
        machine.write_file("/root/other.sh", "while :; do /bin/true; sleep 0.001; done")
        machine.shell(
            "{ sh /root/other.sh & python3 /root/switch.py & } >/dev/null 2>&1 </dev/null; sleep 0.2"
        )

        def switched() -> int:
            return int(machine.shell("cat /dev/shm/switched 2>/dev/null || echo 0").stdout)

        wait_until(
            lambda: switched() > SWITCHES, timeout_s=240, what=f"it has switched {SWITCHES} times", every_s=1
        )
