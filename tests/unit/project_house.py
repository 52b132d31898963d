"""A home with a project of stopped machines: all use cases of bough, and no QEMU."""

from __future__ import annotations

from pathlib import Path

from bough.hypervisor import Hypervisor
from bough.machines.machine import Machine
from bough.machines.nics import resolve_nics
from bough.machines.record import Hardware, MachineRecord
from bough.paths import Home
from bough.projects.loopback import choose_loopback
from bough.projects.record import ProjectRecord, new_project_id
from bough.spec import parse_spec


class ProjectHouse:
    def __init__(self, root: Path) -> None:
        self.home = Home.at(root)
        self.home.create()
        self.hypervisor = Hypervisor(self.home)

    def project(self, name: str, *networks: str, ephemeral: bool = False) -> ProjectRecord:
        project_id = new_project_id()
        record = ProjectRecord(
            id=project_id,
            name=name,
            domain=name,
            spec={"name": name},
            loopback=choose_loopback(project_id, ()),
            ephemeral=ephemeral,
            created="2020-01-01T00:00:00",
        )
        self.hypervisor.projects.store.add(record)
        for network in networks:
            self.hypervisor.networks.create(network, project=record)
        return record

    def machine(self, record: ProjectRecord, role: str | None, *nics: str, standby: bool = False) -> Machine:
        """Make a stopped machine; without a role, a fork of a single machine."""
        spec = parse_spec({"image": "debian:12", "nics": list(nics)})
        number = len(list(self.hypervisor.machines))
        made = MachineRecord(
            id=f"{number:012x}",
            name=f"{record.name}-{role or number}",
            spec=spec,
            image_digest="0" * 64,
            image_agent=True,
            hardware=Hardware(
                arch="x86_64",
                machine_type="pc-q35-7.2",
                cpu_model="qemu64",
                firmware="bios",
                uuid="u",
                vmgenid="v",
                nics=resolve_nics(spec),
                uid=None,
            ),
            project=record.id,
            role=role,
            standby=standby,
            ephemeral=record.ephemeral,
            created="2020-01-01T00:00:00",
        )
        paths = self.home.machine(made.id)
        paths.disks.mkdir(parents=True)
        made.write(paths)
        return self.hypervisor.machines.add(made)

    def again(self) -> Hypervisor:
        """Return the use cases of the next service, which has read no record yet."""
        return Hypervisor(self.home)
