"""References to the machines and networks of projects: "db", "db.shop", "back.shop".

A name of a machine has no dot, so a reference with a dot always names a project.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from bough.errors import Conflict
from bough.machines.machine import Machine
from bough.networks.record import NetworkRecord
from bough.projects.store import ProjectStore

_T = TypeVar("_T")


def machine_by_role(reference: str, machines: Iterable[Machine], projects: ProjectStore) -> Machine | None:
    """Return the machine that "role.project" means, or a role that only one project has; else None.

    Raises:
        Conflict: several projects have the role.
    """
    found = [one for one in machines if one.record.role is not None]
    return _only(reference, "role", found, lambda one: (one.record.role or "", one.record.project), projects)


def network_by_name(
    reference: str, networks: Iterable[NetworkRecord], projects: ProjectStore
) -> NetworkRecord | None:
    """Return the network that "network.project" means, or a name that only one project has; else None.

    Raises:
        Conflict: several projects have the network.
    """
    found = [one for one in networks if one.project is not None]
    return _only(reference, "network", found, lambda one: (one.name, one.project), projects)


def _only(
    reference: str,
    noun: str,
    things: Iterable[_T],
    place_of: Callable[[_T], tuple[str, str | None]],
    projects: ProjectStore,
) -> _T | None:
    name, dot, project_name = reference.partition(".")
    project = projects.named(project_name) if dot else None
    if dot and project is None:
        return None
    matching: dict[str, _T] = {}
    for thing in things:
        own, owner = place_of(thing)
        if own == name and (project is None or owner == project.id):
            record = projects.get(owner)
            matching[f"{name}.{record.name if record else owner}"] = thing
    if len(matching) > 1:
        told = ", ".join(sorted(matching)[:5])
        raise Conflict(
            f"{len(matching)} projects have a {noun} {name!r}: {told}",
            hint=f"name the project, too: {min(matching)}",
        )
    return next(iter(matching.values()), None)
