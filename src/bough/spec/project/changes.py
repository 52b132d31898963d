"""The difference between two versions of a project: what `bough up` has to do again, and whether it can."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from bough.spec.model import MachineSpec
from bough.spec.problems import Problem, render_place
from bough.spec.project.model import ProjectMachine, ProjectSpec
from bough.spec.settings import entry_of
from bough.units import format_size

#: same: nothing to do. running, stopped: the machine changes while it runs, or is off. new: a new machine
#: replaces the machine, whose disks are lost. added, removed: only one version has the machine.
Kind = Literal["same", "running", "stopped", "new", "added", "removed"]
_ORDER: tuple[Kind, ...] = ("same", "running", "stopped", "new")
#: What concerns the order and the waiting of `up` alone.
_PROJECT_ONLY = ("depends_on", "healthcheck", "unchecked", "profiles")


@dataclass(frozen=True)
class MachineChange:
    """The change of a machine.

    Attributes:
        settings: the settings with other values, in the order of the spec.
        problem: why the change is refused; None: the change is possible.
    """

    role: str
    kind: Kind
    settings: tuple[str, ...] = ()
    problem: Problem | None = None

    def describe(self) -> str:
        """Return the change in a few words: "new machine: memory, disk"."""
        words = {
            "same": "unchanged",
            "running": "change",
            "stopped": "change, with a restart",
            "new": "new machine",
            "added": "create",
            "removed": "remove",
        }[self.kind]
        return f"{words}: {', '.join(self.settings)}" if self.settings else words


@dataclass(frozen=True)
class ProjectChange:
    """The change of a project: machines by role, and networks by name.

    Attributes:
        networks: name -> "same", "new" (its settings differ), "added" or "removed".
    """

    machines: dict[str, MachineChange] = field(default_factory=dict)
    networks: dict[str, Kind] = field(default_factory=dict)

    @property
    def problems(self) -> list[Problem]:
        return [change.problem for change in self.machines.values() if change.problem is not None]

    @property
    def is_empty(self) -> bool:
        kinds = {change.kind for change in self.machines.values()} | set(self.networks.values())
        return kinds <= {"same"}


def compare_projects(before: ProjectSpec, after: ProjectSpec) -> ProjectChange:
    """Return what differs. A disk that became smaller is a problem: its data would not fit."""
    return ProjectChange(
        machines=dict(_machine_changes(before, after)), networks=dict(_network_changes(before, after))
    )


def compare_machines(role: str, before: ProjectMachine, after: ProjectMachine) -> MachineChange:
    """Return what differs between two versions of a machine, and what the difference needs."""
    names = [name for name in MachineSpec.model_fields if _differs(name, before.spec, after.spec)]
    kinds: list[Kind] = [_kind_of(name) for name in names]
    if not disks_only_grow(before.spec, after.spec):
        kinds.append("new")
    for name in ("build", "lock"):
        if getattr(before, name) != getattr(after, name):
            names.append(name)
            kinds.append("new")
    for name in _PROJECT_ONLY:
        if getattr(before, name) != getattr(after, name):
            names.append(name)
            kinds.append("running")
    kind: Kind = max(kinds, key=_ORDER.index, default="same")
    problem = next(_find_smaller_disks(role, before.spec, after.spec), None)
    return MachineChange(role, kind, tuple(names), problem)


def _machine_changes(before: ProjectSpec, after: ProjectSpec) -> Iterator[tuple[str, MachineChange]]:
    for role, machine in after.machines.items():
        earlier = before.machines.get(role)
        change = MachineChange(role, "added") if earlier is None else compare_machines(role, earlier, machine)
        yield role, change
    for role in before.machines:
        if role not in after.machines:
            yield role, MachineChange(role, "removed")


def _network_changes(before: ProjectSpec, after: ProjectSpec) -> Iterator[tuple[str, Kind]]:
    for name, network in after.networks.items():
        earlier = before.networks.get(name)
        yield name, "added" if earlier is None else "same" if earlier == network else "new"
    for name in before.networks:
        if name not in after.networks:
            yield name, "removed"


def _differs(name: str, before: MachineSpec, after: MachineSpec) -> bool:
    if name == "uplink" and (before.nics or after.nics):
        return False  # `nics` has the difference
    return bool(getattr(before, name) != getattr(after, name))


def disks_only_grow(before: MachineSpec, after: MachineSpec) -> bool:
    """Return whether the disks are the same disks, none smaller. A size that is left out stays."""
    if after.disk is not None and before.disk is not None and after.disk < before.disk:
        return False
    pairs = zip(before.disks, after.disks, strict=False)
    return len(before.disks) == len(after.disks) and all(
        new.size >= old.size and new.model_copy(update={"size": old.size}) == old for old, new in pairs
    )


def _kind_of(name: str) -> Kind:
    change = entry_of(name).change
    return "new" if change == "never" else change


def _find_smaller_disks(role: str, before: MachineSpec, after: MachineSpec) -> Iterator[Problem]:
    pairs: list[tuple[tuple[Any, ...], int | None, int | None]] = [(("disk",), before.disk, after.disk)]
    sizes = zip(before.disks, after.disks, strict=False)
    pairs += [(("disks", index), old.size, new.size) for index, (old, new) in enumerate(sizes)]
    for at, old, new in pairs:
        if old is not None and new is not None and new < old:
            message = f"the disk would shrink from {format_size(old)} to {format_size(new)}"
            hint = "a disk only grows; to begin with a new disk: bough down --volumes, then bough up"
            yield Problem(render_place(("machines", role, *at)), message, hint)
