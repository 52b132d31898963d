"""The seed disk of a machine, with the settings for cloud-init (NoCloud)."""

from __future__ import annotations

import shutil
from pathlib import Path

from bough.machines.record import MachineRecord
from bough.qemu.plan import DiskPlan

SEED = "seed.iso"


def create_seed(directory: Path, record: MachineRecord) -> None:
    """Write the NoCloud seed of a machine whose image runs cloud-init. Blocks."""
    from bough.images.seed import (
        NO_USER_DATA,
        render_agent_hook,
        render_meta_data,
        render_network,
        write_seed,
    )

    spec = record.spec
    texts = {
        "meta-data": render_meta_data(record.media.instance or record.id, record.hostname, spec.ssh_keys),
        "user-data": spec.user_data or NO_USER_DATA,
        "vendor-data": render_agent_hook(),
        "network-config": render_network(record.hardware.mac_addresses),
    }
    write_seed(directory / SEED, texts)


def renew_seed(directory: Path, record: MachineRecord) -> None:
    """Put the name and MAC addresses of a fork into the copy of the parent's seed. Blocks.

    The fork's memory contains the size of the seed's device. If the new seed has another size, the old seed
    stays. The seed of a machine of an earlier bough stays, too: the instance is unknown.
    """
    seed = directory / SEED
    if record.media.instance is None or not seed.is_file():
        return
    fresh = directory / "fresh"
    fresh.mkdir(mode=0o700)
    try:
        create_seed(fresh, record)
        if (fresh / SEED).stat().st_size == seed.stat().st_size:
            (fresh / SEED).replace(seed)
    finally:
        shutil.rmtree(fresh)


def plan_seed(record: MachineRecord, disks: Path) -> tuple[DiskPlan, ...]:
    if not record.media.seed:
        return ()
    seed = DiskPlan("seed", str(disks / SEED), "cidata", format="raw", read_only=True, bus=record.disk_bus)
    return (seed,)
