"""Validate a spec. Validation is pure and reports all problems at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from bough.spec import disk as disk_text
from bough.spec import mounts, nic, values
from bough.spec.model import MachineSpec, MountSpec
from bough.spec.problems import IS_MISSING, NO_SUCH_SETTING, Problem, raise_if_any, render_place, translate
from bough.units import MIB, format_size


def parse_spec(data: Mapping[str, Any], place: str = "") -> MachineSpec:
    """Return the spec in `data`.

    Args:
        place: position of `data` in a larger document, for messages: "machines.web".

    Raises:
        InvalidSpec: with every problem, not only the first; `problems` is a list of
            {"place": "disks[0].size", "message": ..., "hint": ... or None}.
    """
    if not isinstance(data, Mapping):
        raise_if_any([Problem(place, "expected a table of settings")])
    found: list[Problem] = []
    spec: MachineSpec | None = None
    try:
        spec = MachineSpec.model_validate(_without_repeated_keys(_without_sources(data)))
    except ValidationError as error:
        details = error.errors(include_url=False)
        found += _without_misspelled([translate(one, MachineSpec, place) for one in details])
    found += [Problem(render_place(at, place), what, hint) for at, what, hint in _find_contradictions(data)]
    if spec is not None:
        found += _find_too_little(spec, place)
    raise_if_any(found)
    if spec is None:
        raise AssertionError("a spec without problems and without a value")
    return spec


def parse_mount(data: Mapping[str, Any]) -> MountSpec:
    """Validate a single mount. Raises InvalidSpec, with every problem."""
    try:
        return MountSpec.model_validate(data)
    except ValidationError as error:
        raise_if_any([translate(one, MountSpec) for one in error.errors(include_url=False)])
        raise


def spec_defaults() -> dict[str, Any]:
    """Return the default of every setting; None: decided when the machine is created."""
    spec = MachineSpec(image="debian:12").to_dict()
    return {name: value for name, value in spec.items() if name != "image"}


def spec_schema() -> dict[str, Any]:
    """Return the JSON Schema of a spec, for TOML files and the API."""
    schema = MachineSpec.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    definitions = schema["$defs"]
    definitions["PortSpec"] = _or_text(definitions["PortSpec"], "string", "integer")
    definitions["MountSpec"] = _or_text(definitions["MountSpec"], "string")
    definitions["NicSpec"] = _or_text(definitions["NicSpec"], "string")
    definitions["DiskSpec"] = _or_text(definitions["DiskSpec"], "string", "integer")
    definitions["UserSpec"] = _or_text(definitions["UserSpec"], "string")
    return schema


def _or_text(schema: dict[str, Any], *types: str) -> dict[str, Any]:
    return {"anyOf": [schema, *({"type": name} for name in types)]}


def _without_misspelled(problems: list[Problem]) -> list[Problem]:
    """Drop the problem "is missing" of a setting if a misspelled name is reported for the same setting."""
    meant = {(_table_of(one.place), one.hint) for one in problems if one.message == NO_SUCH_SETTING}
    return [
        one
        for one in problems
        if one.message != IS_MISSING
        or (_table_of(one.place), f"did you mean {one.place.rpartition('.')[2]!r}?") not in meant
    ]


def _table_of(place: str) -> str:
    return place.rpartition(".")[0]


Contradiction = tuple[tuple[str | int, ...], str, str | None]


def _find_contradictions(data: Mapping[str, Any]) -> Iterator[Contradiction]:
    """Find contradictions between settings. The raw data is checked, to report all problems at once."""
    if data.get("kernel") is None:
        for name in ("initrd", "cmdline"):
            if data.get(name) is not None:
                what = "has no effect without a kernel of the host"
                yield (name,), what, "set kernel, or remove this setting"
    if data.get("secure_boot") is True and data.get("firmware") == "bios":
        yield ("secure_boot",), "needs the firmware 'uefi'", "remove firmware, or this setting"
    yield from _find_nic_problems(data)
    yield from _find_repeated(data, "disks", _serial_of, "this serial")
    yield from _find_repeated(data, "users", _user_of, "this user")
    yield from _find_repeated(data, "files", lambda one: one.get("path"), "this path")
    yield from _find_repeated(data, "ports", _host_port_of, "this port of the host")
    yield from _find_repeated(data, "mounts", _target_of, "this directory of the guest")
    for index, one in enumerate(_tables(data, "files")):
        yield from _find_content_problems(index, one)


def _find_too_little(spec: MachineSpec, place: str) -> Iterator[Problem]:
    """Find a memory limit that leaves too little for QEMU. QEMU needs memory beside the guest's."""
    limit, least = spec.limits.memory, spec.memory + 256 * MIB
    if limit is not None and limit < least:
        what = (
            f"{format_size(limit)} is less than the guest's {format_size(spec.memory)} and 256 MiB for QEMU"
        )
        yield Problem(
            render_place(("limits", "memory"), place), what, "remove this setting to use the default"
        )


def _find_content_problems(index: int, file: Any) -> Iterator[Contradiction]:
    if not isinstance(file, Mapping):
        return
    given = [name for name in ("content", "content_base64", "source") if file.get(name) is not None]
    if "source" in given:
        hint = "send content or content_base64"
        yield ("files", index, "source"), "only a client can read source, not the service", hint
    elif len(given) > 1:
        yield ("files", index), "expected either content or content_base64, got both", None
    elif not given:
        yield ("files", index), "has no content", 'an empty file is content = ""'


def _find_repeated(
    data: Mapping[str, Any], name: str, key_of: Callable[[Any], Any], what: str
) -> Iterator[Contradiction]:
    first: dict[Any, int] = {}
    for index, one in enumerate(_tables(data, name)):
        try:
            key = key_of(one)
            if key is None:
                continue
            earlier = first.setdefault(key, index)
        except (AttributeError, TypeError, KeyError, ValueError):
            continue  # wrong type, reported elsewhere
        if earlier != index:
            yield (name, index), f"{what} is already used by {name}[{earlier}]", None


def _find_nic_problems(data: Mapping[str, Any]) -> Iterator[Contradiction]:
    yield from _find_repeated(data, "nics", _mac_of, "this MAC address")
    yield from _find_repeated(data, "nics", _ipv4_of, "this address")
    networks = [nic.network_of(card) for card in _tables(data, "nics")]
    for number, card in enumerate(_tables(data, "nics")):
        if isinstance(card, Mapping) and card.get("ipv4") and networks[number] in (nic.UPLINK, nic.ISOLATED):
            what = "has an effect only on a network between machines"
            yield ("nics", number, "ipv4"), what, "remove this setting"
    on_uplink = [number for number, name in enumerate(networks) if name == nic.UPLINK]
    for number in on_uplink[1:]:
        yield ("nics", number, "network"), f"the uplink already has the card nics[{on_uplink[0]}]", None
    if networks and data.get("uplink", bool(on_uplink)) is not bool(on_uplink):
        what = f"contradicts nics, of which {'one is' if on_uplink else 'none is'} on the uplink"
        yield ("uplink",), what, "remove this setting: nics names the network of each card"


def _mac_of(card: Any) -> Any:
    mac = nic.card(card).get("mac")
    return None if mac is None else nic.mac_address(mac)


def _ipv4_of(card: Any) -> Any:
    address = nic.card(card).get("ipv4")
    return None if address is None else nic.ipv4(address)


def _serial_of(disk: Any) -> Any:
    return disk_text.disk(disk).get("serial")


def _user_of(user: Any) -> Any:
    return user if isinstance(user, str) else user.get("name")


def _host_port_of(port: Any) -> Any:
    table = values.port(port)
    number = table.get("host_port", 0)
    return (values.port_host(table.get("host", "127.0.0.1")), number) if number else None


def _target_of(one: Any) -> Any:
    return mounts.mount_target(mounts.mount(one)["target"])


def _tables(data: Mapping[str, Any], name: str) -> list[Any]:
    value = data.get(name)
    return list(value) if isinstance(value, list | tuple) else []


def _without_sources(data: Mapping[str, Any]) -> dict[str, Any]:
    """Drop `source`: only `_find_content_problems` reports the setting."""
    copy = dict(data)
    if isinstance(copy.get("files"), list | tuple):
        copy["files"] = [
            {key: value for key, value in one.items() if key != "source"} if isinstance(one, Mapping) else one
            for one in copy["files"]
        ]
    return copy


def _without_repeated_keys(data: dict[str, Any]) -> dict[str, Any]:
    """Drop repeated ssh keys. The same key may come from a file and from ~/.ssh."""
    keys = data.get("ssh_keys")
    if isinstance(keys, list | tuple) and all(isinstance(key, str) for key in keys):
        data["ssh_keys"] = list(dict.fromkeys(key.strip() for key in keys))
    return data
