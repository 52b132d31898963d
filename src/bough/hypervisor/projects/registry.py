"""The projects of one home: looked up, described, and kept in step with their machines and networks."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any

from bough.errors import Conflict, NotFound
from bough.hypervisor.description import describe
from bough.hypervisor.inventory import Inventory
from bough.machines.machine import Machine
from bough.machines.state import LIVE, State
from bough.networks.record import NetworkRecord
from bough.networks.store import NetworkStore
from bough.projects.record import ProjectRecord
from bough.projects.store import ProjectStore


class Projects:
    """Attributes:
    store: the records. A record is replaced at each change.
    """

    def __init__(self, store: ProjectStore, inventory: Inventory, networks: NetworkStore) -> None:
        self.store = store
        self._inventory = inventory
        self._networks = networks

    def find(self, reference: str) -> ProjectRecord:
        """Return the project with that name or id. Raises NotFound, Conflict."""
        return self.store.find(reference)

    def open(self) -> None:
        """Put the records in step with the machines and networks that an earlier service has left."""
        for record in self.store:
            self.settle(record)

    def settle(self, record: ProjectRecord) -> ProjectRecord:
        """Have the record name the machines and networks that belong to the project now.

        A machine's own record says where the machine belongs. So a service that is killed loses no machine.
        """
        machines = {role: machine.id for role, machine in self.machines(record).items()}
        networks = {network.name: network.id for network in self.networks(record)}
        return self.store.update(
            record,
            machines={**self.unreadable_machines(record), **machines},
            networks={**_only(record.networks, self._networks.unreadable), **networks},
        )

    def unreadable_machines(self, record: ProjectRecord) -> dict[str, str]:
        """Return role -> id of the machines whose records are damaged. They are not to be made again."""
        return _only(record.machines, self._inventory.unreadable)

    def machines(self, record: ProjectRecord) -> dict[str, Machine]:
        """Return role -> machine."""
        members = self._inventory.machines_of(record.id)
        return {one.record.role: one for one in members if one.record.role is not None}

    def forks_of_machines(self, record: ProjectRecord) -> list[Machine]:
        """Return the forks of single machines, which use the project's networks and have no role."""
        return [one for one in self._inventory.machines_of(record.id) if one.record.role is None]

    def networks(self, record: ProjectRecord) -> list[NetworkRecord]:
        return [network for network in self._networks if network.project == record.id]

    def choose(self, record: ProjectRecord, roles: list[str]) -> dict[str, Machine]:
        """Return the machines of these roles; no roles: all machines.

        Raises:
            NotFound: the project has no such machine.
        """
        found = self.machines(record)
        for role in roles:
            if role not in found:
                known = ", ".join(found) or "none"
                raise NotFound(
                    f"project '{record.name}' has no machine '{role[:80]}'",
                    hint=f"its machines: {known}",
                    kind="machine",
                    name=role[:80],
                )
        return {role: machine for role, machine in found.items() if not roles or role in roles}

    def check_deletable(self, machine: Machine) -> None:
        """Raise Conflict if the machine is a machine of a project's file."""
        record = self.store.get(machine.record.project)
        if record is not None and machine.record.role is not None:
            raise Conflict(
                f"machine '{machine.name}' is the machine '{machine.record.role}' of project '{record.name}'",
                hint=f"delete the project, or remove the machine from its file: bough down --volumes "
                f"--project {record.name}",
                machine=machine.name,
                project=record.name,
            )

    def check_settable(self, machine: Machine) -> None:
        """Raise Conflict if a project's file has the settings of the machine."""
        record = self.store.get(machine.record.project)
        if record is not None and machine.record.role is not None:
            raise Conflict(
                f"machine '{machine.name}' is the machine '{machine.record.role}' of project '{record.name}'"
                ", whose file has its settings",
                hint=f"change {record.file or 'bough.toml'} and run `bough up`",
                machine=machine.name,
                project=record.name,
            )

    def describe(self, record: ProjectRecord) -> dict[str, Any]:
        """Return the API's description of a project."""
        machines = self.machines(record)
        return {
            "id": record.id,
            "name": record.name,
            "domain": record.domain,
            "file": record.file,
            "loopback": record.loopback,
            "snapshot": record.snapshot,
            "ephemeral": record.ephemeral,
            "created": record.created,
            "state": _state(list(machines.values())),
            "machines": [{**describe(machine), "role": role} for role, machine in machines.items()],
            "networks": [
                {"id": one.id, "name": one.name, "subnet": str(one.subnet)} for one in self.networks(record)
            ],
        }


def _only(ids: Mapping[str, str], chosen: Container[str]) -> dict[str, str]:
    return {name: one for name, one in ids.items() if one in chosen}


def _state(machines: list[Machine]) -> str:
    """Return one word for all machines: "running", "partly running", or the most alarming state at rest."""
    states = {machine.state for machine in machines}
    if states and states <= LIVE:
        return "running"
    if states & LIVE:
        return "partly running"
    return str(next((one for one in (State.FAILED, State.SUSPENDED) if one in states), State.STOPPED))
