"""Choose the agent disk of a machine, and delete unused agent disks."""

from __future__ import annotations

import time

from bough.errors import BoughError
from bough.hypervisor.half_made import HalfMade
from bough.hypervisor.inventory import Inventory
from bough.images.agent_disk.store import AgentDisk, AgentDiskStore
from bough.images.store import ImageManifest
from bough.machines.record import MachineRecord
from bough.progress import Report, notice
from bough.snapshots.store import SnapshotStore

#: After a failed build, boots use the disk that they have, without another build, for so long.
_AGAIN_S = 600.0


class AgentDisks:
    """The agent disks of the machines of a home.

    Attributes:
        store: the disks.
    """

    def __init__(
        self,
        store: AgentDiskStore,
        half_made: HalfMade,
        inventory: Inventory,
        snapshots: SnapshotStore,
    ) -> None:
        self.store = store
        self._half_made = half_made
        self._inventory = inventory
        self._snapshots = snapshots
        #: Architecture -> time of the last failed build.
        self._failed: dict[str, float] = {}

    async def for_image(self, image: ImageManifest, report: Report) -> str | None:
        """Return the digest of the disk for a new machine of the image; None if the machine needs none. The
        first call builds the disk.

        Raises:
            HostLacks, BuildFailed, NoSpace
        """
        return await self._newest(image.arch, report) if image.agent == "disk" else None

    async def for_boot(self, record: MachineRecord, report: Report) -> str | None:
        """Return the digest of the disk for a boot of the machine: the newest. So a new version of the agent
        reaches old machines. If the newest cannot be built, the machine boots with the disk that it had.

        Raises:
            HostLacks, BuildFailed, NoSpace: the machine has no disk to boot with.
        """
        arch, own = record.hardware.arch, record.agent_disk
        if own is None:
            return None
        has_own = self.store.has(arch, own)
        if has_own and self.store.newest(arch) is None and self._failed_lately(arch):
            return own
        try:
            return await self._newest(arch, report)
        except BoughError as error:
            if not has_own:
                raise
            self._failed[arch] = time.monotonic()
            report(notice(f"the machine boots with an older agent: {error.message}"))
            return own

    def _failed_lately(self, arch: str) -> bool:
        return time.monotonic() - self._failed.get(arch, -_AGAIN_S) < _AGAIN_S

    async def _newest(self, arch: str, report: Report) -> str:
        found = self.store.newest(arch)
        if found is not None:
            return found
        with self._half_made.working():
            return await self.store.provide(arch, report)

    def collect(self) -> None:
        """Remove the disks that no machine and no snapshot names, unless a record cannot be read."""
        if self._snapshots.is_damaged:
            return
        named = [(record.hardware.arch, record.agent_disk) for record in self._inventory.records()]
        named += [(one.hardware.arch, one.agent_disk) for one in self._snapshots.every()]
        self.store.collect({AgentDisk(arch, digest) for arch, digest in named if digest is not None})
