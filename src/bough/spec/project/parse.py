"""Validate a project. Validation is pure and reports all problems at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from bough.errors import InvalidInput
from bough.spec.model import MachineSpec
from bough.spec.nic import ISOLATED, UPLINK
from bough.spec.problems import (
    NO_SUCH_SETTING,
    Problem,
    did_you_mean,
    quote,
    raise_if_any,
    render_place,
    translate,
)
from bough.spec.project.checks import find_contradictions
from bough.spec.project.document import as_project
from bough.spec.project.extends import Extended, resolve_extends
from bough.spec.project.machine_table import MachineReader, MachineTable
from bough.spec.project.model import Condition, ProjectMachine, ProjectNetwork, ProjectSpec
from bough.spec.project.settings import TOP_SETTINGS
from bough.spec.values import parse_name

#: The network of machines that name no network.
DEFAULT_NETWORK = "default"
MOST_MACHINES = 250
MOST_NETWORKS = 64
_OTHER_TOP = {"services": "machines", "hosts": "machines", "vms": "machines", "nodes": "machines"}


def parse_project(data: Mapping[str, Any], *, name: str | None = None) -> ProjectSpec:
    """Return the project that `data` describes: the content of a bough.toml, with all variables replaced.

    Args:
        data: a file of one machine, with `image` at the top, is a project of one machine.
        name: name of the project if `data` has none.

    Raises:
        InvalidSpec: with every problem, not only the first; `problems` is a list of
            {"place": "machines.db.memory", "message": ..., "hint": ... or None}.
    """
    if not isinstance(data, Mapping):
        raise_if_any([Problem("", "expected a table with [machines.*]")])
    return _ProjectReader(as_project(data), name).read()


class _ProjectReader:
    def __init__(self, data: Mapping[str, Any], name: str | None) -> None:
        self._data = data
        self._problems: list[Problem] = []
        self._name = self._read_name(data.get("name", name))

    def read(self) -> ProjectSpec:
        self._check_top()
        extended = resolve_extends(self._data)
        self._problems += extended.problems
        networks = self._networks()
        tables = self._machines(extended, networks)
        self._problems += find_contradictions(tables, networks)
        machines = self._expand(tables)
        raise_if_any(self._problems)
        return ProjectSpec(name=self._name, machines=machines, networks=networks)

    def _read_name(self, value: Any) -> str:
        if value is None:
            self._problems.append(Problem("name", "is missing", 'for example name = "shop"'))
            return "project"
        try:
            return parse_name(value)
        except InvalidInput as error:
            self._problems.append(Problem("name", error.message, error.hint))
            return "project"

    def _check_top(self) -> None:
        for name in self._data:
            if name in TOP_SETTINGS:
                continue
            hint: str | None
            if name in _OTHER_TOP:
                hint = f"did you mean {_OTHER_TOP[name]!r}?"
            elif name in MachineSpec.model_fields:
                hint = "settings of a machine belong below [machines.NAME], shared ones below [shared.NAME]"
            else:
                hint = did_you_mean(str(name), TOP_SETTINGS)
            self._problems.append(Problem(render_place((str(name),)), NO_SUCH_SETTING, hint))
        for name in ("machines", "networks", "shared"):
            value = self._data.get(name, {})
            if not isinstance(value, Mapping):
                message = f"expected tables like [{name}.NAME], got {quote(value)}"
                self._problems.append(Problem(name, message))
        if not self._data.get("machines"):
            hint = 'write a table [machines.NAME] with image = "debian:12"'
            self._problems.append(Problem("machines", "the project has no machine", hint))

    # Networks

    def _networks(self) -> dict[str, ProjectNetwork]:
        given = self._table("networks")
        found = {}
        for name, table in given.items():
            place = render_place(("networks", str(name)))
            self._check_name(place, name)
            if name in (UPLINK, ISOLATED):
                self._problems.append(Problem(place, f"{name!r} has another meaning; choose another name"))
                continue
            try:
                found[name] = ProjectNetwork.model_validate(table)
            except ValidationError as error:
                details = error.errors(include_url=False)
                self._problems += [translate(one, ProjectNetwork, place) for one in details]
                found[name] = _network_with_subnet(table)
        if len(found) > MOST_NETWORKS:
            self._problems.append(
                Problem("networks", f"expected at most {MOST_NETWORKS} networks, got {len(found)}")
            )
        if DEFAULT_NETWORK not in found and self._needs_default():
            found[DEFAULT_NETWORK] = ProjectNetwork()
        return found

    def _needs_default(self) -> bool:
        """Return whether a machine is on the network 'default' because the machine names no network."""
        machines = resolve_extends(self._data).machines
        tables = [table for table in machines.values() if isinstance(table, Mapping)]
        alone = len(tables) == 1 and tables[0].get("scale", 1) == 1
        return not alone and any("networks" not in one and "nics" not in one for one in tables)

    # Machines

    def _machines(self, extended: Extended, networks: Mapping[str, ProjectNetwork]) -> list[MachineTable]:
        default = DEFAULT_NETWORK if DEFAULT_NETWORK in networks else None
        keys = [str(key) for key in extended.machines]
        reader = MachineReader(self._name, keys, list(networks), default)
        read = []
        for key, table in extended.machines.items():
            self._check_name(render_place(("machines", str(key))), key)
            one = reader.read(str(key), table)
            read += [one] if one is not None else []
        self._problems += reader.problems
        return read

    def _expand(self, tables: list[MachineTable]) -> dict[str, ProjectMachine]:
        """Return the machines by role."""
        roles = {table.key: _roles(table) for table in tables}
        checked = {table.key for table in tables if table.healthcheck is not None}
        found: dict[str, ProjectMachine] = {}
        for table in tables:
            for role in roles[table.key]:
                place = render_place(("machines", table.key))
                if role in found:
                    message = f"the machine {role!r} of machines.{found[role].key} has the same name"
                    self._problems.append(Problem(place, message, "rename one of both"))
                self._check_full_name(place, role)
                if table.spec is None:
                    continue
                found[role] = ProjectMachine(
                    key=table.key,
                    spec=_with_alias(table),
                    depends_on=dict(_role_conditions(table, roles, checked)),
                    healthcheck=table.healthcheck,
                    unchecked=table.unchecked,
                    profiles=table.profiles,
                    build=table.build,
                    lock=table.lock,
                )
        if sum(map(len, roles.values())) > MOST_MACHINES:
            self._problems.append(Problem("machines", f"expected at most {MOST_MACHINES} machines"))
        return found

    def _check_full_name(self, place: str, role: str) -> None:
        full = f"{self._name}-{role}"
        if len(full) > 63:
            hint = "choose a shorter name for the project or for the machine"
            self._problems.append(
                Problem(place, f"the machine's name {full!r} has more than 63 characters", hint)
            )

    def _check_name(self, place: str, name: Any) -> None:
        try:
            parse_name(name)
        except InvalidInput as error:
            self._problems.append(Problem(place, error.message, error.hint))

    def _table(self, name: str) -> Mapping[Any, Any]:
        value = self._data.get(name)
        return value if isinstance(value, Mapping) else {}


def _network_with_subnet(table: Any) -> ProjectNetwork:
    """Return the network of a table with problems: with its subnet if that is valid, to find overlaps."""
    subnet = table.get("subnet") if isinstance(table, Mapping) else None
    try:
        return ProjectNetwork.model_validate({"subnet": subnet})
    except ValidationError:
        return ProjectNetwork()


def _roles(table: MachineTable) -> list[str]:
    if table.scale == 1:
        return [table.key]
    return [f"{table.key}-{number}" for number in range(1, table.scale + 1)]


def _role_conditions(
    table: MachineTable, roles: Mapping[str, list[str]], checked: set[str]
) -> Iterator[tuple[str, Condition]]:
    for key, condition in table.depends_on.items():
        for role in roles.get(key, ()):
            yield role, condition or ("healthy" if key in checked else "started")


def _with_alias(table: MachineTable) -> MachineSpec:
    """Return the spec. Equal machines share a name on their networks: the name of their table."""
    spec = table.spec
    if spec is None:
        raise AssertionError("a machine without problems and without a spec")
    if table.scale == 1:
        return spec
    cards = tuple(
        card
        if card.network in (UPLINK, ISOLATED) or table.key in card.aliases
        else card.model_copy(update={"aliases": (*card.aliases, table.key)})
        for card in spec.nics
    )
    return spec.model_copy(update={"nics": cards})
