"""Read one table [machines.NAME] of a project."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import ValidationError

from bough.errors import InvalidSpec
from bough.spec import nic
from bough.spec.lock import PackageLock, parse_lock
from bough.spec.model import MachineSpec, NicSpec
from bough.spec.parse import parse_spec
from bough.spec.problems import (
    NO_SUCH_SETTING,
    Problem,
    did_you_mean,
    nearest,
    quote,
    render_place,
    translate,
)
from bough.spec.project.extends import as_table
from bough.spec.project.healthcheck import HealthCheckSpec, check_kinds
from bough.spec.project.model import Condition
from bough.spec.project.settings import INSTEAD, MACHINE_SETTINGS, OTHER_NAMES
from bough.spec.recipe import RecipeSpec, parse_recipe
from bough.spec.values import parse_name

MOST_SCALE = 64
CONDITIONS: tuple[Condition, ...] = ("started", "healthy", "completed")
#: Compose's words for the same conditions.
_COMPOSE_CONDITIONS = {
    "service_started": "started",
    "service_healthy": "healthy",
    "service_completed_successfully": "completed",
}
_CARD_SETTINGS = ("aliases", "ipv4", "mac", "model")

Value = TypeVar("Value")


@dataclass
class MachineTable:
    """A machine's table, read. None stands for a value with problems.

    Attributes:
        depends_on: key of another machine -> condition; None: healthy if that machine has a check.
    """

    key: str
    spec: MachineSpec | None
    depends_on: dict[str, Condition | None]
    healthcheck: HealthCheckSpec | None
    unchecked: bool
    profiles: tuple[str, ...]
    scale: int
    build: RecipeSpec | None
    lock: PackageLock | None


class MachineReader:
    """Read the tables of machines, and collect all problems.

    Args:
        keys: names of all machines of the project.
        networks: names of all networks of the project.
        default_network: the network of machines that name none; None: such machines are on no network.
    """

    def __init__(
        self, project: str, keys: list[str], networks: list[str], default_network: str | None
    ) -> None:
        self.problems: list[Problem] = []
        self._project = project
        self._keys = keys
        self._networks = networks
        self._default_network = default_network
        self._place = ""

    def read(self, key: str, table: Any) -> MachineTable | None:
        """Return the machine of a table; None if the value is no table."""
        self._place = render_place(("machines", key))
        if not isinstance(table, Mapping):
            self._tell((), f"expected a table of settings, got {quote(table)}", f"write [machines.{key}]")
            return None
        settings = self._with_workdir(self._known(table))
        build = self._build(settings.pop("build", None))
        if build is not None and settings.get("image") is None:
            settings["image"] = build.label or f"{self._project}-{key}"
        elif build is None and "build" in table and settings.get("image") is None:
            settings["image"] = "unknown"  # the problem of `build` is told, and is the only one
        read = MachineTable(
            key=key,
            depends_on=self._depends_on(key, settings.pop("depends_on", None)),
            unchecked=_is_disabled(settings.get("healthcheck")),
            healthcheck=self._healthcheck(settings.pop("healthcheck", None)),
            profiles=self._profiles(settings.pop("profiles", None)),
            scale=self._scale(settings.pop("scale", 1)),
            build=build,
            lock=self._lock(settings.pop("lock", None), has_build="build" in table),
            spec=None,
        )
        read.spec = self._spec(self._with_cards(settings))
        if read.scale > 1 and read.spec is not None:
            self.problems += _find_unscalable(read.spec, self._place, read.scale)
        return read

    def _known(self, table: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings that exist, and report the others."""
        known = [*MachineSpec.model_fields, *MACHINE_SETTINGS]
        for name in table:
            if name not in known:
                meant = OTHER_NAMES.get(str(name).lower().replace("-", "_"))
                hint = f"did you mean {meant!r}?" if meant else INSTEAD.get(name)
                near = nearest(str(name), known)
                hint = hint or (f"did you mean {near!r}?" if near else None)
                self._tell((str(name),), NO_SUCH_SETTING, hint)
        return {name: value for name, value in table.items() if name in known and name != "extends"}

    def _with_workdir(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Return the settings with `workdir` for Compose's `working_dir`."""
        if "working_dir" not in settings:
            return settings
        if "workdir" in settings:
            self._tell(("working_dir",), "is another word for workdir, which is given, too", "remove one")
        found = {name: value for name, value in settings.items() if name != "working_dir"}
        return {"workdir": settings["working_dir"], **found}

    def _spec(self, settings: Mapping[str, Any]) -> MachineSpec | None:
        return self._told_by(lambda: parse_spec(settings, self._place))

    def _build(self, value: Any) -> RecipeSpec | None:
        if value is None:
            return None
        if not isinstance(value, Mapping):
            hint = "only a client can read a recipe's file; send the recipe's settings"
            self._tell(("build",), f"expected the settings of a recipe, got {quote(value)}", hint)
            return None
        return self._told_by(lambda: parse_recipe(value), render_place(("build",), self._place))

    def _lock(self, value: Any, *, has_build: bool) -> PackageLock | None:
        if value is None:
            return None
        if not has_build:
            self._tell(("lock",), "locks the image that `build` makes, and there is no `build`")
            return None
        if not isinstance(value, Mapping):
            hint = "only a client can read a lock's file; send the content of the lock"
            self._tell(("lock",), f"expected the content of a lock, got {quote(value)}", hint)
            return None
        try:
            return parse_lock(value)
        except InvalidSpec as error:
            self._tell(("lock",), error.message, error.hint)
            return None

    def _told_by(self, parse: Callable[[], Value], prefix: str = "") -> Value | None:
        """Return what `parse` returns; None after it has raised InvalidSpec, whose problems are kept."""
        try:
            return parse()
        except InvalidSpec as error:
            for one in error.problems:
                joined = ".".join(part for part in (prefix, one["place"]) if part)
                self.problems.append(Problem(joined, one["message"], one["hint"]))
            return None

    # Settings of projects

    def _depends_on(self, key: str, value: Any) -> dict[str, Condition | None]:
        if value is None:
            return {}
        table = as_table(value)
        if table is None:
            self._tell(("depends_on",), f"expected a list of machines, or a table, got {quote(value)}")
            return {}
        found: dict[str, Condition | None] = {}
        for index, (name, given) in enumerate(table.items()):
            at = ("depends_on", name) if isinstance(value, Mapping) else ("depends_on", index)
            if name not in self._keys:
                hint = did_you_mean(str(name), [one for one in self._keys if one != key])
                self._tell(at, f"no machine {quote(name)}", hint)
            else:
                found[name] = self._condition(at, given)
        return found

    def _condition(self, at: tuple[str | int, ...], given: Any) -> Condition | None:
        if isinstance(given, Mapping):
            for name in given:
                if name != "condition":
                    hint = did_you_mean(str(name), ["condition"])
                    self._tell((*at, str(name)), NO_SUCH_SETTING, hint)
            given = given.get("condition")
        if given is None:
            return None
        for condition in CONDITIONS:
            if given == condition:
                return condition
        meant = _COMPOSE_CONDITIONS.get(given) if isinstance(given, str) else None
        allowed = ", ".join(map(repr, CONDITIONS))
        hint = f"did you mean {meant!r}?" if meant else None
        self._tell(at, f"expected one of {allowed}, got {quote(given)}", hint)
        return None

    def _healthcheck(self, value: Any) -> HealthCheckSpec | None:
        if value is None:
            return None
        if _is_disabled(value):
            return None
        if isinstance(value, Mapping) and value.get("disable") is not None:
            if value["disable"] is not False:
                message = f"expected true or false, got {quote(value['disable'])}"
                self._tell(("healthcheck", "disable"), message)
            value = {name: one for name, one in value.items() if name != "disable"}
        before = len(self.problems)
        try:
            check = HealthCheckSpec.model_validate(value)
        except ValidationError as error:
            prefix = render_place(("healthcheck",), self._place)
            details = error.errors(include_url=False)
            self.problems += [translate(one, HealthCheckSpec, prefix) for one in details]
            check = None
        misspelled = len(self.problems) > before
        for at, message, hint in check_kinds(value):
            if at or not misspelled:
                self._tell(("healthcheck", *at), message, hint)
        return check if len(self.problems) == before else None

    def _profiles(self, value: Any) -> tuple[str, ...]:
        names = [value] if isinstance(value, str) else value
        if names is None:
            return ()
        if not isinstance(names, list | tuple):
            self._tell(("profiles",), f"expected a list of names, got {quote(value)}")
            return ()
        before = len(self.problems)
        for index, name in enumerate(names):
            at = ("profiles", index) if names is value else ("profiles",)
            self._named(at, name)
        return tuple(dict.fromkeys(names)) if len(self.problems) == before else ()

    def _scale(self, value: Any) -> int:
        if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MOST_SCALE:
            return value
        hint = "use profiles for a machine that does not always run" if value == 0 else None
        self._tell(("scale",), f"expected a number from 1 to {MOST_SCALE}, got {quote(value)}", hint)
        return 1

    # Network cards

    def _with_cards(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings with `nics` for `networks`: the uplink's card first."""
        left = {name: value for name, value in settings.items() if name != "networks"}
        given, nics = settings.get("networks"), settings.get("nics")
        if nics is not None:
            self._check_cards(nics)
            if given:
                hint = "remove nics, or name the networks in nics"
                self._tell(("networks",), "contradicts nics: both name the network cards", hint)
            return left
        if given is None and self._default_network is not None:
            given = [self._default_network]
        cards = self._cards(given)
        uplink = settings.get("uplink", True)
        if not cards or uplink not in (True, False, nic.ISOLATED):
            return left
        first = {True: [nic.UPLINK], nic.ISOLATED: [nic.ISOLATED], False: []}[uplink]
        left.pop("uplink", None)
        return {**left, "nics": [*({"network": one} for one in first), *cards]}

    def _cards(self, value: Any) -> list[dict[str, Any]]:
        if value is None:
            return []
        table = as_table(value)
        if table is None:
            self._tell(("networks",), f"expected a list of networks, or a table, got {quote(value)}")
            return []
        cards = []
        for index, (name, given) in enumerate(table.items()):
            at = ("networks", name) if isinstance(value, Mapping) else ("networks", index)
            if self._has_network(at, name):
                card = self._card(at, name, given)
                cards += [card] if card is not None else []
        if len(cards) >= nic.MOST_NICS:
            most = nic.MOST_NICS - 1
            self._tell(("networks",), f"expected at most {most} networks beside the uplink, got {len(cards)}")
            return cards[:most]
        return cards

    def _card(self, at: tuple[str | int, ...], network: str, given: Any) -> dict[str, Any] | None:
        if not isinstance(given, Mapping):
            self._tell(at, f"expected a table like {{ aliases = ['primary'] }}, got {quote(given)}")
            return None
        for name in given:
            if name not in _CARD_SETTINGS:
                self._tell((*at, str(name)), NO_SUCH_SETTING, did_you_mean(str(name), _CARD_SETTINGS))
        card = {"network": network, **{name: given[name] for name in _CARD_SETTINGS if name in given}}
        try:
            NicSpec.model_validate(card)
        except ValidationError as error:
            prefix = render_place(at, self._place)
            self.problems += [translate(one, NicSpec, prefix) for one in error.errors(include_url=False)]
            return None
        return card

    def _check_cards(self, nics: Any) -> None:
        for index, card in enumerate(nics if isinstance(nics, list | tuple) else []):
            name = nic.network_of(card)
            if isinstance(name, str) and name not in (nic.UPLINK, nic.ISOLATED):
                self._has_network(("nics", index, "network"), name)

    def _has_network(self, at: tuple[str | int, ...], name: Any) -> bool:
        if name in self._networks:
            return True
        hint = did_you_mean(str(name), self._networks)
        if name in (nic.UPLINK, nic.ISOLATED):
            hint = "the uplink is the first card, unless the machine says: uplink = false"
        elif not self._networks:
            hint = f"write a table [networks.{name}]"
        self._tell(at, f"no network {quote(name)}", hint)
        return False

    # Problems

    def _named(self, at: tuple[str | int, ...], name: Any) -> None:
        from bough.errors import InvalidInput

        try:
            parse_name(name)
        except InvalidInput as error:
            self._tell(at, error.message, error.hint)

    def _tell(self, at: tuple[str | int, ...], message: str, hint: str | None = None) -> None:
        self.problems.append(Problem(render_place(at, self._place), message, hint))


def _is_disabled(healthcheck: Any) -> bool:
    return isinstance(healthcheck, Mapping) and healthcheck.get("disable") is True


def _find_unscalable(spec: MachineSpec, place: str, scale: int) -> Iterator[Problem]:
    """Find settings that only one machine can have."""
    for index, port in enumerate(spec.ports):
        if port.host_port:
            hint = f"write '{port.guest_port}': each machine gets a free port of the host"
            at = render_place(("ports", index), place)
            yield Problem(at, f"{scale} machines cannot share the host's port {port.host_port}", hint)
    for card in spec.nics:
        for name, what in (("mac", "a MAC address"), ("ipv4", "an address")):
            if getattr(card, name) is not None:
                at = render_place(("networks", card.network, name), place)
                yield Problem(at, f"{scale} machines cannot share {what}", f"remove {name}")
    if spec.hostname is not None:
        at = render_place(("hostname",), place)
        yield Problem(at, f"{scale} machines cannot share a host name", "remove hostname")
