"""The order in which the machines of a project start: generations that start at the same time."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter

from bough.errors import InvalidInput
from bough.spec.problems import did_you_mean
from bough.spec.project.model import ProjectSpec


def start_order(project: ProjectSpec, roles: Collection[str] | None = None) -> list[list[str]]:
    """Return the generations of roles. All machines that a machine depends on are in earlier generations.

    Args:
        roles: only these machines; None: all. Dependencies on other machines do not count.
    """
    chosen = [role for role in project.machines if roles is None or role in roles]
    graph = {role: [one for one in project.machines[role].depends_on if one in chosen] for role in chosen}
    sorter = TopologicalSorter(graph)
    sorter.prepare()
    generations: list[list[str]] = []
    while sorter.is_active():
        ready = set(sorter.get_ready())
        generations.append([role for role in chosen if role in ready])
        sorter.done(*ready)
    return generations


def stop_order(project: ProjectSpec, roles: Collection[str] | None = None) -> list[list[str]]:
    """Return the generations in the order of their stop: the reverse of the start."""
    return start_order(project, roles)[::-1]


def choose_roles(project: ProjectSpec, names: Iterable[str] = (), profiles: Iterable[str] = ()) -> list[str]:
    """Return the roles that `up` starts, in the order of the file.

    Args:
        names: roles, or keys of machines with `scale`. Named machines start with all machines that they
            depend on, whatever their profiles. Without names, all machines start that have no profile or
            one of `profiles`.

    Raises:
        InvalidInput: names or profiles that the project does not have.
    """
    wanted, active = list(names), set(profiles)
    known = sorted({profile for machine in project.machines.values() for profile in machine.profiles})
    for profile in sorted(active - set(known)):
        raise InvalidInput(
            f"the project {project.name!r} has no profile {profile!r}", hint=did_you_mean(profile, known)
        )
    if not wanted:
        return [
            role
            for role, machine in project.machines.items()
            if not machine.profiles or active & set(machine.profiles)
        ]
    reached = reach_dependencies(project, (role for name in wanted for role in _roles(project, name)))
    return [role for role in project.machines if role in reached]


def reach_dependencies(project: ProjectSpec, roles: Iterable[str]) -> set[str]:
    """Return the roles and all roles that they depend on, directly or not."""
    todo, reached = list(roles), set[str]()
    while todo:
        if (role := todo.pop()) not in reached:
            reached.add(role)
            todo += project.machines[role].depends_on
    return reached


def find_cycles(graph: Mapping[str, Iterable[str]]) -> Iterator[list[str]]:
    """Yield cycles of dependence, each as the names of its members; the first name is also the last."""
    left = {name: list(others) for name, others in graph.items()}
    while True:
        try:
            TopologicalSorter(left).prepare()
            return
        except CycleError as error:
            # Each name in the error's list is a dependency of the next name.
            cycle = list(error.args[1])[::-1]
        yield cycle
        left[cycle[0]] = [other for other in left[cycle[0]] if other != cycle[1]]


def _roles(project: ProjectSpec, name: str) -> list[str]:
    if name in project.machines:
        return [name]
    roles = project.roles_of(name)
    if not roles:
        hint = did_you_mean(name, project.machines)
        raise InvalidInput(f"the project {project.name!r} has no machine {name!r}", hint=hint)
    return roles
