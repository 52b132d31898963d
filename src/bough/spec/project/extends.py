"""Shared parts of machines: `extends` names shared parts or machines, whose settings a machine takes over.

tables    are merged: environment, limits, healthcheck, depends_on, networks
lists     are joined, the shared entries first
others    are replaced by the machine's own value
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from bough.spec.problems import Problem, did_you_mean, quote, render_place
from bough.spec.project.healthcheck import KINDS

#: The tables of the file whose entries may extend and be extended.
SOURCES = ("machines", "shared")
_MERGED = ("environment", "limits")
#: A list of names, or a table of names and settings.
_NAMED = ("depends_on", "networks")
_JOINED = ("profiles", "nics", "disks", "users", "ssh_keys", "files", "commands", "ports", "mounts")
_MOST_DEPTH = 50


@dataclass
class Extended:
    """The machines with all settings that they take over.

    Attributes:
        origins: (machine, setting) -> the table with the setting's value, if it is another table.
        joined: the settings (machine, setting) whose entries come from several tables.
    """

    machines: dict[str, Any] = field(default_factory=dict)
    origins: dict[tuple[str, str], tuple[str, str]] = field(default_factory=dict)
    joined: set[tuple[str, str]] = field(default_factory=set)
    problems: list[Problem] = field(default_factory=list)


def resolve_extends(data: Mapping[str, Any]) -> Extended:
    """Return the machines of a project's data, without `extends` and without shared parts."""
    found = Extended()
    tables = {name: _tables(data, name) for name in SOURCES}
    found.problems += _find_shared_names(tables)
    resolver = _Resolver(tables, found)
    for key, table in tables["machines"].items():
        found.machines[key] = resolver.resolve(key, table)
    for key, table in tables["shared"].items():
        resolver.check(key, table)
    return found


class _Resolver:
    def __init__(self, tables: Mapping[str, Mapping[str, Any]], found: Extended) -> None:
        self._tables = tables
        self._found = found
        self._told: set[str] = set()

    def resolve(self, key: str, table: Any) -> Any:
        if not isinstance(table, Mapping) or "extends" not in table:
            return table
        merged: dict[str, Any] = {}
        for source, name, part in self._chain("machines", key, ()):
            for setting, value in part.items():
                if setting != "extends":
                    self._add(key, merged, setting, value)
                    self._found.origins[(key, setting)] = (source, name)
        return merged

    def _add(self, key: str, merged: dict[str, Any], setting: str, value: Any) -> None:
        before = merged.get(setting)
        if before is None or before == value:
            merged[setting] = value
            return
        if is_joined(setting, value, before):
            self._found.joined.add((key, setting))
        merged[setting] = merge_setting(setting, before, value)

    def check(self, key: str, table: Any) -> None:
        """Find the problems of a shared part that no machine extends."""
        if not isinstance(table, Mapping):
            place = render_place(("shared", key))
            self._tell(Problem(place, f"expected a table of settings, got {quote(table)}"))
        elif "extends" in table:
            list(self._chain("shared", key, ()))

    def _chain(
        self, source: str, key: str, above: tuple[str, ...]
    ) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
        """Yield the tables that an entry consists of, the most general first."""
        table = self._tables[source][key]
        if not isinstance(table, Mapping):
            return
        place = render_place((source, key, "extends"))
        path = (*above, key)
        for name in self._names(table.get("extends"), place):
            other = next((one for one in SOURCES if name in self._tables[one]), None)
            if other is None:
                known = [known for one in SOURCES for known in self._tables[one] if known != key]
                hint = did_you_mean(name, known) or "write a table [shared.NAME]"
                self._tell(Problem(place, f"no shared part and no machine {quote(name)}", hint))
            elif name in path:
                circle = " -> ".join((*path[path.index(name) :], name))
                self._tell(Problem(place, f"extends itself: {circle}", "remove one of these"))
            elif len(path) < _MOST_DEPTH:
                yield from self._chain(other, name, path)
        yield source, key, table

    def _names(self, value: Any, place: str) -> list[str]:
        names = [value] if isinstance(value, str) else value
        if names is None:
            return []
        if isinstance(names, list | tuple) and all(isinstance(name, str) for name in names):
            return list(names)
        self._tell(Problem(place, f"expected the name of a shared part or of a machine, got {quote(value)}"))
        return []

    def _tell(self, problem: Problem) -> None:
        # Each machine that extends a table finds the problems of the table again.
        key = f"{problem.place}\0{problem.message}"
        if key not in self._told:
            self._told.add(key)
            self._found.problems.append(problem)


def is_joined(setting: str, value: Any, before: Any) -> bool:
    return setting in _JOINED and isinstance(value, list | tuple) and isinstance(before, list | tuple)


def merge_setting(setting: str, before: Any, value: Any) -> Any:
    """Return the value of a setting that a shared part and a machine set."""
    if is_joined(setting, value, before):
        return [*before, *value]
    if setting in _NAMED:
        return _merge_named(before, value)
    if setting == "healthcheck":
        return _merge_healthcheck(before, value)
    if setting in _MERGED and isinstance(value, Mapping) and isinstance(before, Mapping):
        return {**before, **value}
    return value


def _merge_named(before: Any, value: Any) -> Any:
    first, second = as_table(before), as_table(value)
    return value if first is None or second is None else {**first, **second}


def as_table(value: Any) -> dict[Any, Any] | None:
    """Return a list of names as a table of names; None: the value is neither."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, list | tuple) and all(isinstance(name, str) for name in value):
        return {name: {} for name in value}
    return None


def _merge_healthcheck(before: Any, value: Any) -> Any:
    """Merge two checks. A kind of the machine replaces the kind of the shared part."""
    if not isinstance(before, Mapping) or not isinstance(value, Mapping):
        return value
    has_kind = any(kind in value for kind in KINDS)
    kept = {name: one for name, one in before.items() if not (has_kind and name in KINDS)}
    return {**kept, **value}


def _find_shared_names(tables: Mapping[str, Mapping[str, Any]]) -> Iterator[Problem]:
    for name in tables["shared"]:
        if name in tables["machines"]:
            place = render_place(("shared", name))
            yield Problem(place, f"a machine is called {quote(name)}, too", "rename the shared part")


def _tables(data: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = data.get(name)
    return value if isinstance(value, Mapping) else {}
