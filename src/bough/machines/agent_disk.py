"""The agent disk in a machine's plan (images/agent_disk)."""

from __future__ import annotations

from bough.errors import HostLacks
from bough.guest.install import DISK_SERIAL
from bough.machines.record import MachineRecord
from bough.machines.state import State
from bough.paths import Home
from bough.qemu.plan import AGENT_DISK_ID, DiskPlan


def plan_agent_disk(record: MachineRecord, home: Home) -> tuple[DiskPlan, ...]:
    """Return the disk, after all other disks. The user's list of disks does not have it.

    Raises:
        HostLacks: the machine starts, and its disk is missing.
    """
    if record.agent_disk is None:
        return ()
    path = home.agent_disk(record.hardware.arch, record.agent_disk)
    if record.state is State.STARTING and not path.is_file():
        raise HostLacks(
            f"the agent disk that the memory of machine '{record.name}' knows is missing: {path}",
            hint="restore the file from a backup; or discard the memory, and boot from the disks: --cold",
        )
    disk = DiskPlan(AGENT_DISK_ID, str(path), DISK_SERIAL, format="raw", read_only=True, bus=record.disk_bus)
    return (disk,)
