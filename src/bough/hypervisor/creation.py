"""`create`: a stopped machine from a spec."""

from __future__ import annotations

import asyncio
from typing import Any

from bough.errors import InvalidInput
from bough.hypervisor.agent_disks import AgentDisks
from bough.hypervisor.half_made import HalfMade
from bough.hypervisor.image_source import ImageSource
from bough.hypervisor.inventory import Inventory
from bough.hypervisor.lifetimes import Lifetimes
from bough.hypervisor.names import Names
from bough.images.store import ImageManifest, ImageStore, split_label
from bough.machines.disks.creation import create_disks
from bough.machines.events import Events
from bough.machines.machine import Machine
from bough.machines.media import resolve_media, with_image_disks
from bough.machines.nics import Networks, check_networks
from bough.machines.plan import check_arch, install_firmware_variables, resolve_hardware
from bough.machines.record import FirstBoot, MachineRecord, Membership, PortForward, new_machine_id, now
from bough.machines.seed import create_seed
from bough.mounts.source import resolve_mounts
from bough.paths import Home, MachinePaths
from bough.progress import Progress, Report, ignore_progress
from bough.qemu.host import read_host_facts
from bough.qemu.tpm import create_tpm_state
from bough.spec import MachineSpec, check_against_host, parse_spec
from bough.spec.program import check_program, check_settings, with_exposed_ports
from bough.storage import remove_tree, sync_directory
from bough.tasks import finish


class Creation:
    """Creates machines. An error or a cancelled call leaves nothing behind."""

    def __init__(
        self,
        home: Home,
        events: Events,
        store: ImageStore,
        source: ImageSource,
        inventory: Inventory,
        names: Names,
        lifetimes: Lifetimes,
        half_made: HalfMade,
        networks: Networks,
        agent_disks: AgentDisks,
    ) -> None:
        self._home = home
        self._events = events
        self._store = store
        self._source = source
        self._inventory = inventory
        self._names = names
        self._lifetimes = lifetimes
        self._half_made = half_made
        self._networks = networks
        self._agent_disks = agent_disks

    async def create(
        self,
        data: dict[str, Any],
        *,
        name: str | None = None,
        force: bool = False,
        ephemeral: bool = False,
        member: Membership | None = None,
        program: bool = True,
        report: Report = ignore_progress,
    ) -> Machine:
        """Create a stopped machine. A missing image is built or pulled first.

        Args:
            member: the machine's place in a project.
            program: refuse a container image without a program.

        Raises:
            InvalidSpec, BeyondHost, NameTaken, NotFound (the image), BuildFailed, NoSpace, HostLacks
            InvalidInput: the container image has no program.
        """
        spec = await self.check(data, force=force, member=member)
        with self._names.reserve(name or self._names.free_name(spec.image)) as reserved:
            image = await self._source.find(spec.image, spec.arch, report)
            if program:
                check_program(spec, image.container)
            machine = await self.create_from(
                spec, reserved, image, ephemeral=ephemeral, member=member, report=report
            )
        self._events.emit("created", machine=machine.id, name=machine.name)
        if ephemeral:
            self._lifetimes.expire_unless_held(machine.id)
        return machine

    async def check(
        self, data: dict[str, Any], *, force: bool, member: Membership | None = None
    ) -> MachineSpec:
        """Return the spec that a user wrote. The check comes before an image is built for minutes.

        Raises:
            InvalidSpec: the spec makes no sense, or names a network that does not exist. BeyondHost: the spec
                asks for more than the host has.
        """
        spec = resolve_mounts(parse_spec(data), self._home.hidden)
        check_networks(spec, self._networks, member.project if member else None)
        facts = await read_host_facts(self._home)
        check_against_host(spec, facts, force=force)
        check_arch(spec.arch or split_label(spec.image)[1] or facts.arch)
        return spec

    async def create_from(
        self,
        spec: MachineSpec,
        name: str,
        image: ImageManifest,
        *,
        ephemeral: bool,
        report: Report,
        member: Membership | None = None,
    ) -> Machine:
        """Create a machine whose name is reserved, without an event."""
        if spec.mounts and not (image.agent or image.cloud_init):
            raise InvalidInput(
                f"{spec.image} lacks bough's agent, which shared directories need",
                hint="copy files into its disk, or share them over its network",
            )
        check_settings(spec, image.container)
        spec = with_image_disks(with_exposed_ports(spec, image.container), image, self._store.resolve)
        report(Progress("creating the machine"))
        with self._half_made.working(), self._source.using(image.digest):
            disk = await self._agent_disks.for_image(image, report)
            record = await self._new_record(spec, name, image, ephemeral, disk)
            if member is not None:
                record.project, record.role = member
            made = MachinePaths(self._home.incoming / record.id, self._home.runtime / record.id)
            try:
                await self._write_files(made, record, image)
                made.root.rename(self._home.machine(record.id).root)
            except BaseException:
                remove_tree(made.root)
                raise
            sync_directory(self._home.machines)
            return self._inventory.add(record)

    async def _new_record(
        self,
        spec: MachineSpec,
        name: str,
        image: ImageManifest,
        ephemeral: bool,
        agent_disk: str | None,
    ) -> MachineRecord:
        machine_id = new_machine_id()
        hardware = await resolve_hardware(
            spec, image, self._home, machine_id=machine_id, taken_uids=self._inventory.taken_uids()
        )
        return MachineRecord(
            id=machine_id,
            name=name,
            spec=spec,
            image_digest=image.digest,
            image_agent=bool(image.agent) or image.cloud_init,
            agent_disk=agent_disk,
            container=image.container,
            hardware=hardware,
            created=now(),
            ephemeral=ephemeral,
            ports=[PortForward(**port.model_dump()) for port in spec.ports],
            first_boot=FirstBoot(instance=machine_id),
            # An image from a machine's disk still has the machine's identity.
            identity="new" if image.agent and image.lived else "known",
            media=resolve_media(spec, image, self._store.resolve),
        )

    async def _write_files(self, made: MachinePaths, record: MachineRecord, image: ImageManifest) -> None:
        for directory in (made.root, made.disks, made.log):
            directory.mkdir(mode=0o711)
        record.disks = await create_disks(made, record, image, self._home)
        install_firmware_variables(
            record.hardware, made.disks, image.efi_loader, secure=record.spec.secure_boot
        )
        if record.spec.tpm:
            create_tpm_state(made.disks)
        if record.media.seed:
            record.media.instance = record.id
            await finish(asyncio.to_thread(create_seed, made.disks, record))
        record.write(made)
