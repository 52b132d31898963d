"""Render a project: as the data that gives the same project again, as TOML and as JSON."""

from __future__ import annotations

import json
from typing import Any, Literal

from bough.spec.model import MachineSpec
from bough.spec.nic import ISOLATED, UPLINK
from bough.spec.project.model import ProjectMachine, ProjectSpec
from bough.units import MIB

_SIZES = ("memory", "disk", "size")


def to_data(project: ProjectSpec) -> dict[str, Any]:
    """Return JSON-able data; `parse_project` makes the same project from it.

    Machines that share a table, by `scale`, share one table again.
    """
    return {
        "name": project.name,
        "machines": {key: _machine(project, key) for key in project.keys},
        "networks": {
            name: network.model_dump(mode="json", exclude_defaults=True)
            for name, network in project.networks.items()
        },
    }


def render_config(project: ProjectSpec, form: Literal["toml", "json"] = "toml") -> str:
    """Return the resolved project as a text, for `bough config`."""
    data = to_data(project)
    if form == "json":
        return json.dumps(data, indent=2, ensure_ascii=False) + "\n"
    import tomli_w

    return tomli_w.dumps(_readable(data))


def _machine(project: ProjectSpec, key: str) -> dict[str, Any]:
    roles = project.roles_of(key)
    machine = project.machines[roles[0]]
    data = _settings(machine, is_scaled=roles != [key])
    if roles != [key]:
        data["scale"] = len(roles)
    if machine.profiles:
        data["profiles"] = list(machine.profiles)
    if machine.depends_on:
        others = {project.machines[role].key: condition for role, condition in machine.depends_on.items()}
        data["depends_on"] = {other: {"condition": condition} for other, condition in others.items()}
    if machine.healthcheck is not None:
        data["healthcheck"] = _plain(machine.healthcheck.model_dump(mode="json", exclude_unset=True))
    if machine.unchecked:
        data["healthcheck"] = {"disable": True}
    if machine.build is not None:
        data["build"] = _plain(machine.build.model_dump(mode="json", exclude_unset=True))
    if machine.lock is not None:
        data["lock"] = _plain(machine.lock.model_dump(mode="json", exclude_unset=True))
    return data


def _settings(machine: ProjectMachine, *, is_scaled: bool) -> dict[str, Any]:
    """Return the settings of the machine itself that are set, with `networks` in place of `nics`."""
    data: dict[str, Any] = _plain(machine.spec.model_dump(mode="json", exclude_unset=True))
    if not machine.spec.nics:
        return {**data, "networks": []}
    if not _is_in_order(machine.spec):
        return data
    cards = data.pop("nics")
    data.pop("uplink", None)
    names = [card["network"] for card in cards]
    if names[0] not in (UPLINK, ISOLATED):
        data["uplink"] = False
    elif names[0] == ISOLATED:
        data["uplink"] = ISOLATED
    data["networks"] = {
        card["network"]: _card(card, machine.key if is_scaled else None)
        for card in cards
        if card["network"] not in (UPLINK, ISOLATED)
    }
    return data


def _is_in_order(spec: MachineSpec) -> bool:
    """Return whether `networks` can stand for the cards: the uplink plain and first, each network once."""
    names = [card.network for card in spec.nics]
    first = [card for card in spec.nics if card.network in (UPLINK, ISOLATED)]
    plain = all(card.mac is None and card.model == "virtio" and not card.aliases for card in first)
    has_networks = len(first) < len(names)
    return (
        plain
        and has_networks
        and len(first) <= 1
        and first == list(spec.nics[: len(first)])
        and (len(set(names)) == len(names))
    )


def _card(card: dict[str, Any], shared_alias: str | None) -> dict[str, Any]:
    kept = {name: value for name, value in card.items() if name != "network"}
    aliases = [alias for alias in kept.pop("aliases", ()) if alias != shared_alias]
    return {**kept, "aliases": aliases} if aliases else kept


def _readable(value: Any, name: str = "") -> Any:
    """Return data with sizes and ports as people write them."""
    if isinstance(value, dict):
        return {key: _readable(one, key) for key, one in value.items()}
    if isinstance(value, list):
        return [_port(one) if name == "ports" else _readable(one) for one in value]
    is_size = name in _SIZES and isinstance(value, int) and not isinstance(value, bool)
    return f"{value // MIB}MiB" if is_size and value % MIB == 0 else value


def _port(port: dict[str, Any]) -> str:
    """Return a port like "8080:80"; see spec/values.py."""
    host, outer = port.get("host", ""), port.get("host_port") or ""
    host = f"[{host}]:" if ":" in host else f"{host}:" if host else ""
    return f"{host}{outer}:{port['guest_port']}" if host or outer else str(port["guest_port"])


def _plain(value: Any) -> Any:
    """Return the value without nulls, which TOML does not have."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items() if one is not None}
    return [_plain(one) for one in value] if isinstance(value, list) else value
