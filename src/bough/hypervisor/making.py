"""A machine is made, from an image that is found, built or fetched."""

from __future__ import annotations

import asyncio
from typing import Any

from bough.errors import InvalidInput, NotFound
from bough.hypervisor.base import Base, remove_tree
from bough.images.build import build
from bough.images.confined import Confinement
from bough.images.pull import pull_image
from bough.images.recipes import LABELS
from bough.images.store import ImageManifest, split_label
from bough.machines.disks import create_disks
from bough.machines.machine import Machine
from bough.machines.media import create_seed, resolve_media, with_image_disks
from bough.machines.plan import check_arch, host_arch, install_firmware_variables, resolve_hardware
from bough.machines.record import FirstBoot, MachineRecord, PortForward, new_machine_id, now
from bough.mounts.source import resolve_mounts
from bough.paths import MachinePaths
from bough.progress import Progress, Report, ignore_progress
from bough.qemu.host import read_host_facts
from bough.qemu.probe import find_qemu, probe_jail
from bough.spec import MachineSpec, check_against_host, parse_architecture, parse_spec
from bough.storage import sync_directory
from bough.tasks import finish


class Making(Base):
    async def image(self, reference: str, arch: str | None, report: Report) -> ImageManifest:
        """From the store; built when it is a known recipe that was never built for this architecture; or as
        others publish it."""
        label, own = split_label(reference)
        arch = arch or own
        if arch is None and label in LABELS:
            arch = host_arch()
        try:
            return self.images.resolve(reference, arch)
        except NotFound:
            if label not in LABELS and self.images.knows(label):
                raise  # it is here, for another architecture
            if label not in LABELS and self.catalogues.current().knows(label):
                return await self.pull_image(label, arch=arch, report=report)
            with self._half_made():
                return await build(self.images, label, arch=arch or host_arch(), progress=report)

    async def pull_image(
        self,
        reference: str,
        *,
        arch: str | None,
        label: str | None = None,
        signed: bool = True,
        report: Report,
    ) -> ImageManifest:
        """See bough.images.pull: an image of the catalogue."""
        jail = await probe_jail(find_qemu(host_arch()), self.home)
        with self._half_made():
            return await pull_image(
                self.images,
                self.catalogues.current(),
                reference,
                parse_architecture(arch) if arch else host_arch(),
                Confinement(jail),
                report,
                label=label,
                signed=signed,
            )

    async def create(
        self,
        data: dict[str, Any],
        *,
        name: str | None = None,
        force: bool = False,
        ephemeral: bool = False,
        report: Report = ignore_progress,
    ) -> Machine:
        """A stopped machine from a spec; its image is built first when it is not here.

        Cancelling, or any error, leaves nothing behind.

        Raises:
            InvalidSpec, BeyondHost, NameTaken, NotFound (the image), BuildFailed, NoSpace, HostLacks
        """
        spec = resolve_mounts(parse_spec(data), self._hidden)
        facts = await read_host_facts(self.home)
        check_against_host(spec, facts, force=force)
        # Told before an image is built for minutes.
        check_arch(spec.arch or split_label(spec.image)[1] or facts.arch)
        with self._reserve(name or self._free_name(spec.image)) as reserved, self._half_made():
            image = await self.image(spec.image, spec.arch, report)
            with self._using(image.digest):
                machine = await self._create(spec, reserved, image, ephemeral, report)
        self.events.emit("created", machine=machine.id, name=machine.name)
        if ephemeral:
            self._expire_unless_held(machine.id)
        return machine

    async def _create(
        self, spec: MachineSpec, name: str, image: ImageManifest, ephemeral: bool, report: Report
    ) -> Machine:
        if spec.mounts and not (image.agent or image.cloud_init):
            raise InvalidInput(
                f"{spec.image} has no agent of bough's, without which no directory is shared",
                hint="copy files into its disk, or share them over its network",
            )
        spec = with_image_disks(spec, image, self.images.resolve)
        report(Progress("creating the machine"))
        machine_id = new_machine_id()
        hardware = await resolve_hardware(
            spec, image, self.home, machine_id=machine_id, taken_uids=self._taken_uids()
        )
        record = MachineRecord(
            id=machine_id,
            name=name,
            spec=spec,
            image_digest=image.digest,
            image_agent=image.agent or image.cloud_init,
            hardware=hardware,
            created=now(),
            ephemeral=ephemeral,
            ports=[PortForward(**port.model_dump()) for port in spec.ports],
            first_boot=FirstBoot(instance=machine_id),
            # A disk of another machine of ours: its guest is told at its first boot who it is now.
            identity="new" if image.agent and image.lived else "known",
            media=resolve_media(spec, image, self.images.resolve),
        )
        made = MachinePaths(self.home.incoming / record.id, self.home.runtime / record.id)
        paths = self.home.machine(record.id)
        try:
            for directory in (made.root, made.disks, made.log):
                directory.mkdir(mode=0o711)
            record.disks = await create_disks(made, record, image, self.home)
            install_firmware_variables(hardware, made.disks, image.efi_loader)
            if record.media.seed:
                record.media.instance = machine_id
                await finish(asyncio.to_thread(create_seed, made.disks, record))
            record.write(made)
            made.root.rename(paths.root)
        except BaseException:
            remove_tree(made.root)
            raise
        sync_directory(self.home.machines)
        machine = self._machine_of(record, paths)
        self._machines[record.id] = machine
        return machine
