"""What `bough up` has to do: compared with the machines and networks that exist."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from bough.errors import InvalidSpec
from bough.hypervisor.inventory import Inventory
from bough.hypervisor.projects.networks import ProjectNetworks
from bough.hypervisor.projects.registry import Projects
from bough.hypervisor.projects.specs import machine_spec
from bough.machines.disks.growth import grown_disks
from bough.machines.host_port import HostPort
from bough.machines.machine import Machine
from bough.machines.state import LIVE, State
from bough.projects.record import ProjectRecord, machine_name
from bough.spec import MachineSpec
from bough.spec.problems import Problem, raise_if_any, render_place
from bough.spec.project.changes import MachineChange, compare_machines
from bough.spec.project.model import ProjectMachine, ProjectSpec

_MOST_NAME = 63
#: leave: the file does not name the machine any more.
Action = Literal["create", "recreate", "change", "restart", "start", "keep", "leave", "delete"]


@dataclass(frozen=True)
class Step:
    """What `up` does with one machine or network.

    Attributes:
        name: a role, or a network's name.
        action: "restart": change while it is off. "change": change while it runs.
        settings: names of the changed settings.
    """

    noun: Literal["machine", "network"]
    name: str
    action: Action
    settings: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return {"noun": self.noun, "name": self.name, "action": self.action, "settings": list(self.settings)}


@dataclass(frozen=True)
class Wish:
    """A request of `up`.

    Attributes:
        name: of the project in the home.
        roles: the machines to start, with all that they depend on.
        recreate: delete machines, with their disks, that cannot change otherwise, and create them anew.
        remove_orphans: delete machines that the file does not name any more.
    """

    spec: ProjectSpec
    name: str
    roles: Collection[str]
    recreate: bool = False
    remove_orphans: bool = False


class ProjectPlanner:
    def __init__(self, projects: Projects, networks: ProjectNetworks, inventory: Inventory) -> None:
        self._projects = projects
        self._networks = networks
        self._inventory = inventory

    def plan(self, wish: Wish, record: ProjectRecord) -> list[Step]:
        """Return the steps, networks first.

        Args:
            record: the project's record; for a new project, the record that it will have.

        Raises:
            InvalidSpec: steps that would lose data, or cannot be made; with all problems.
            Conflict: a running machine uses a network whose settings change.
        """
        self._networks.check_changes(record, wish.spec)
        machines = self._projects.machines(record)
        changes = {
            role: self._change(wish, record, role, machines[role]) for role in wish.roles if role in machines
        }
        raise_if_any(list(self._problems(wish, record, machines, changes)))
        return [
            *self._network_steps(wish, record),
            *(_step(role, machines.get(role), changes.get(role)) for role in wish.roles),
            *self._orphans(wish, machines),
        ]

    def _change(self, wish: Wish, record: ProjectRecord, role: str, machine: Machine) -> MachineChange:
        applied, wanted = record.applied.get(role), wish.spec.machines[role]
        before = wanted if applied is None else read_applied(applied)
        change = compare_machines(role, before, wanted)
        if change.kind == "new":
            return change
        try:
            grown_disks(machine.record, wanted.spec)
        except InvalidSpec as error:  # the file had no size before
            problem = Problem(render_place(("machines", role, "disk")), error.message, error.hint)
            return replace(change, problem=change.problem or problem)
        return change

    def _network_steps(self, wish: Wish, record: ProjectRecord) -> Iterator[Step]:
        known, changed = self._networks.of(record), self._networks.changed(record, wish.spec)
        for name in wish.spec.networks:
            action: Action = "create" if name not in known else "change" if name in changed else "keep"
            yield Step("network", name, action, tuple(changed.get(name, ())))

    def _orphans(self, wish: Wish, machines: Mapping[str, Machine]) -> Iterator[Step]:
        for role in machines:
            if role not in wish.spec.machines:
                yield Step("machine", role, "delete" if wish.remove_orphans else "leave")

    def _problems(
        self,
        wish: Wish,
        record: ProjectRecord,
        machines: Mapping[str, Machine],
        changes: Mapping[str, MachineChange],
    ) -> Iterator[Problem]:
        if not wish.recreate:
            for role, change in changes.items():
                yield from _losses(role, change)
        damaged = self._projects.unreadable_machines(record)
        for role in wish.roles:
            machine = machines.get(role)
            if role in damaged:
                yield _damaged(role, damaged[role])
            elif machine is None:
                yield from self._taken_name(wish, role)
            if machine is None or machine.state not in LIVE:
                yield from _taken_ports(role, machine_spec(record, role, wish.spec.machines[role]))

    def _taken_name(self, wish: Wish, role: str) -> Iterator[Problem]:
        name = machine_name(wish.name, role)
        if len(name) > _MOST_NAME:
            hint = "choose a shorter name for the project: bough up --project NAME"
            yield Problem(render_place(("machines", role)), f"the name '{name}' is too long", hint)
        if any(one.name == name and not one.record.standby for one in self._inventory.present()):
            yield Problem(
                render_place(("machines", role)),
                f"a machine named '{name}' exists already, and is not of this project",
                f"rename it: bough rename {name} NEW-NAME",
            )


def read_applied(data: Mapping[str, Any]) -> ProjectMachine:
    """Return a machine's settings in the file from which the machine was made."""
    return ProjectMachine.model_validate(dict(data), strict=False)


def write_applied(machine: ProjectMachine) -> dict[str, Any]:
    """Return what `read_applied` reads. Defaults are left out: a later version of bough may have others."""
    return machine.model_dump(mode="json", exclude_unset=True)


def _step(role: str, machine: Machine | None, change: MachineChange | None) -> Step:
    if machine is None or change is None:
        return Step("machine", role, "create")
    # What concerns the waiting of `up` alone needs no change of the machine.
    settings = tuple(name for name in change.settings if name in (*MachineSpec.model_fields, "build", "lock"))
    if change.kind == "new" or change.problem is not None:
        return Step("machine", role, "recreate", settings)
    if change.kind == "stopped":
        return Step("machine", role, "restart", settings)
    if machine.state is not State.RUNNING:
        return Step("machine", role, "start", settings)
    return Step("machine", role, "change" if settings else "keep", settings)


def _damaged(role: str, machine_id: str) -> Problem:
    return Problem(
        render_place(("machines", role)),
        f"the record of its machine {machine_id} cannot be read",
        "bough doctor --store says which repair is safe",
    )


def _losses(role: str, change: MachineChange) -> Iterator[Problem]:
    """Find changes that need a new machine: the disks of the present machine would be lost."""
    if change.problem is not None:
        yield change.problem
    elif change.kind == "new":
        yield Problem(
            render_place(("machines", role)),
            f"{' and '.join(change.settings)} changed, which needs a new machine; its disks would be lost",
            f"to delete the machine and create it anew: bough up --recreate {role}",
        )


def _taken_ports(role: str, spec: MachineSpec) -> Iterator[Problem]:
    for index, port in enumerate(spec.ports):
        if not port.host_port:
            continue
        try:
            HostPort(port.host, port.host_port).close()
        except (OSError, OverflowError) as error:
            why = getattr(error, "strerror", None) or str(error)
            yield Problem(
                render_place(("machines", role, "ports", index)),
                f"port {port.host_port} of {port.host} cannot be used: {why}",
                "choose another port of the host, or leave it out for any free one",
            )
