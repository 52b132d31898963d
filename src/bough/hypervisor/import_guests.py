"""Provide the boot files of the throw-away guest of an import; see images/linux_disk/guest_parts.py."""

from __future__ import annotations

from bough.errors import HostLacks
from bough.hypervisor.image_source import ImageSource
from bough.images.agent_disk.store import AgentDiskStore
from bough.images.linux_disk.guest_parts import ARCHITECTURES, GuestParts
from bough.images.store import ImageManifest, ImageStore
from bough.machines.plan import host_arch
from bough.progress import Report
from bough.qemu.binary import find_qemu

#: Built if the home has no Debian image.
_LABEL = "debian:12"


class ImportGuests:
    """The kernel of a Debian image, and the agent disk. Missing parts are built."""

    def __init__(self, store: ImageStore, source: ImageSource, agent_disks: AgentDiskStore) -> None:
        self._store = store
        self._source = source
        self._agent_disks = agent_disks

    async def provide(self, report: Report) -> GuestParts:
        """Return the parts for a guest of this host's processor.

        Raises:
            HostLacks, BuildFailed, NoSpace
        """
        arch = host_arch()
        if arch not in ARCHITECTURES:
            raise HostLacks(f"bough has no throw-away guest for {arch}")
        image = self._newest(arch) or await self._source.find(_LABEL, arch, report)
        digest = await self._agent_disks.provide(arch, report)
        disk = self._agent_disks.path(arch, digest)
        return GuestParts(find_qemu(arch).path, arch, self._store.path(image.digest), disk)

    def _newest(self, arch: str) -> ImageManifest | None:
        """Return the newest image that bough has built from Debian's packages alone."""
        images = [entry.manifest for entry in self._store.entries()]
        fitting = (image for image in images if image.os == "debian" and image.arch == arch)
        return next((image for image in fitting if image.recipe and not image.lived), None)
