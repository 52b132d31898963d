"""Contradictions between the machines, and between the networks, of a project."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from ipaddress import IPv4Address, IPv4Network

from bough.spec.container_name import is_container_name
from bough.spec.problems import Problem, render_place
from bough.spec.project.machine_table import MachineTable
from bough.spec.project.model import ProjectNetwork
from bough.spec.project.order import find_cycles
from bough.spec.subnet import unusable_address


def find_contradictions(
    tables: Sequence[MachineTable], networks: Mapping[str, ProjectNetwork]
) -> Iterator[Problem]:
    yield from _find_cycles(tables)
    yield from _find_missing_checks(tables)
    yield from _find_inactive_dependencies(tables)
    yield from _find_shared_ports(tables)
    yield from _find_shared_macs(tables)
    yield from _find_address_problems(tables, networks)
    yield from _find_overlaps(networks)


def _find_cycles(tables: Sequence[MachineTable]) -> Iterator[Problem]:
    for cycle in find_cycles({table.key: table.depends_on for table in tables}):
        place = render_place(("machines", cycle[0], "depends_on"))
        if len(cycle) == 2:
            yield Problem(place, f"{cycle[0]!r} depends on itself", "remove the name")
        else:
            hint = "remove one of these dependencies"
            yield Problem(place, f"the machines wait for each other: {' -> '.join(cycle)}", hint)


def _find_missing_checks(tables: Sequence[MachineTable]) -> Iterator[Problem]:
    unchecked = {table.key for table in tables if table.healthcheck is None and not _may_have_check(table)}
    for table in tables:
        for name, condition in table.depends_on.items():
            if condition == "healthy" and name in unchecked:
                place = render_place(("machines", table.key, "depends_on", name))
                hint = f"write [machines.{name}.healthcheck], or the condition 'started'"
                yield Problem(place, f"the machine {name!r} has no health check", hint)


def _may_have_check(table: MachineTable) -> bool:
    """Return whether the image may have a check: a container image, or one of a recipe."""
    image = table.spec.image if table.spec is not None else ""
    return not table.unchecked and (table.build is not None or is_container_name(image))


def _find_inactive_dependencies(tables: Sequence[MachineTable]) -> Iterator[Problem]:
    """Find machines that can run without a machine that they depend on."""
    profiles = {table.key: table.profiles for table in tables}
    for table in tables:
        for name in table.depends_on:
            needed = profiles.get(name, ())
            if needed and (not table.profiles or set(table.profiles) - set(needed)):
                place = render_place(("machines", table.key, "depends_on"))
                words = " or ".join(map(repr, needed))
                hint = f"give {table.key!r} the same profiles, or {name!r} none"
                yield Problem(place, f"the machine {name!r} runs only with the profile {words}", hint)


def _find_shared_ports(tables: Sequence[MachineTable]) -> Iterator[Problem]:
    first: dict[tuple[str, int], str] = {}
    for table in tables:
        for index, port in enumerate(table.spec.ports if table.spec is not None else ()):
            if port.host_port == 0:
                continue
            owner = first.setdefault((port.host, port.host_port), table.key)
            if owner != table.key:
                place = render_place(("machines", table.key, "ports", index))
                yield Problem(place, f"the host's port {port.host_port} is already used by machines.{owner}")


def _find_shared_macs(tables: Sequence[MachineTable]) -> Iterator[Problem]:
    first: dict[str, str] = {}
    for table in tables:
        for card in table.spec.nics if table.spec is not None else ():
            if card.mac is None:
                continue
            owner = first.setdefault(card.mac, table.key)
            if owner != table.key:
                place = render_place(("machines", table.key, "networks", card.network, "mac"))
                yield Problem(place, f"the MAC address {card.mac} is already used by machines.{owner}")


def _find_address_problems(
    tables: Sequence[MachineTable], networks: Mapping[str, ProjectNetwork]
) -> Iterator[Problem]:
    first: dict[tuple[str, str], str] = {}
    for table in tables:
        for card in table.spec.nics if table.spec is not None else ():
            if card.ipv4 is None or card.network not in networks:
                continue
            place = render_place(("machines", table.key, "networks", card.network, "ipv4"))
            owner = first.setdefault((card.network, card.ipv4), table.key)
            if owner != table.key:
                yield Problem(place, f"the address {card.ipv4} is already used by machines.{owner}")
            subnet = networks[card.network].subnet
            if subnet is None:
                hint = f'write subnet = "..." below [networks.{card.network}]'
                yield Problem(place, f"the network {card.network!r} has no subnet of its own", hint)
            elif problem := unusable_address(IPv4Address(card.ipv4), IPv4Network(subnet)):
                yield Problem(place, problem)


def _find_overlaps(networks: Mapping[str, ProjectNetwork]) -> Iterator[Problem]:
    seen: dict[str, IPv4Network] = {}
    for name, network in networks.items():
        if network.subnet is None:
            continue
        subnet = IPv4Network(network.subnet)
        for other, used in seen.items():
            if subnet.overlaps(used):
                place = render_place(("networks", name, "subnet"))
                yield Problem(place, f"{subnet} overlaps with {used}, the subnet of networks.{other}")
        seen[name] = subnet
