"""Faults of the links between machines: made in the switch of their network."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import permutations
from random import Random
from typing import Any, Literal

from bough.errors import Conflict, InvalidInput, WrongState
from bough.hypervisor.faults import Faults
from bough.hypervisor.inventory import Inventory
from bough.hypervisor.networks import Networks
from bough.machines.faults.record import FaultRecord, new_fault_id, new_seed
from bough.machines.machine import Machine
from bough.machines.state import LIVE
from bough.networks.record import NetworkRecord
from bough.networks.switch.link_fault import DROP, HOLD, Arc, LinkFault, Words, problems_of
from bough.units import format_duration

Direction = Literal["to", "from", "both"]
Mode = Literal["drop", "slow", "hold"]
Pattern = Literal["groups", "isolate", "bridge", "majorities-ring"]

LINK, PARTITION = "link", "partition"
#: What a slow link does.
_SLOW = {"delay": 1.0, "jitter": 0.5}
_MODES: Mapping[str, dict[str, Any]] = {"drop": {"cut": DROP}, "hold": {"cut": HOLD}, "slow": _SLOW}
_LEAST_RING = 4


class LinkFaults:
    """Makes faults of links."""

    def __init__(self, faults: Faults, networks: Networks, inventory: Inventory) -> None:
        self._faults = faults
        self._networks = networks
        self._inventory = inventory
        for kind in (LINK, PARTITION):
            faults.undo[kind] = self._tell_switch

    def rules_of(self, network: NetworkRecord) -> list[dict[str, Any]]:
        """Return the faults that the network's switch has to make."""
        return [one.settings["rule"] for one in self._faults.of_network(network.id) if "rule" in one.settings]

    async def link(
        self,
        machine: str,
        peers: Sequence[str],
        words: Mapping[str, Any],
        *,
        network: str | None = None,
        direction: Direction = "both",
        seed: int | None = None,
        held: bool = False,
        for_s: float | None = None,
    ) -> FaultRecord:
        """Change what happens to the frames of a machine, or between a machine and its peers.

        Args:
            peers: none: all machines of the network.
            words: see Words.
            direction: "to": frames to the machine; "from": frames from the machine.

        Raises:
            NotFound: no such machine or network.
            InvalidInput: the words make no sense, or a machine is named twice.
            WrongState: a machine does not run.
            Conflict: no common network, or another fault sets the same word for one of the links.
        """
        given = {name: value for name, value in words.items() if value}
        if problems := problems_of(given):
            raise InvalidInput("; ".join(problems))
        if not given:
            raise InvalidInput("the fault changes nothing", hint="give a delay, loss, rate, ...")
        record = self._network_of([machine, *peers], network)
        ends = self._find_all(record, [machine, *peers])
        own, others = self._ports(record, ends[:1]), self._ports(record, ends[1:]) if peers else None
        arcs = []
        if direction in ("to", "both"):
            arcs.append(Arc(others, own))
        if direction in ("from", "both"):
            arcs.append(Arc(own, others))
        other = f"and {', '.join(one.name for one in ends[1:])}" if peers else "and all others"
        way = {"both": "between", "to": "to", "from": "from"}[direction]
        where = f"{way} {ends[0].name} {other if direction == 'both' else ''}".rstrip()
        if direction != "both" and peers:
            where += f" ({', '.join(one.name for one in ends[1:])} only)"
        summary = f"{render_words(given)} {where}"
        fault = self._new(LINK, record, ends, summary, seed=seed, held=held, is_random=_is_random(given))
        return await self._begin(fault, record, arcs, given, for_s)

    async def partition(
        self,
        pattern: Pattern,
        groups: Sequence[Sequence[str]],
        machines: Sequence[str],
        *,
        network: str | None = None,
        mode: Mode = "drop",
        seed: int | None = None,
        held: bool = False,
        for_s: float | None = None,
    ) -> FaultRecord:
        """Cut links between groups of machines.

        Args:
            pattern: "groups": no frame passes between two groups. "isolate": each of `machines` is alone.
                "bridge": `machines` has one machine, which sees both groups; without groups, the others are
                halved. "majorities-ring": each machine sees a majority, and no two see the same.
            mode: "drop", "hold" (frames are kept until the end), "slow" (0.5 to 1.5 s late).

        Raises: as `link`.
        """
        if pattern not in ("groups", "bridge") and groups:
            raise InvalidInput(f"{pattern} has no groups")
        if pattern == "groups" and machines:
            raise InvalidInput("a partition has groups")
        named = [name for group in groups for name in group] + list(machines)
        record = self._network_of(named, network)
        plan = Plan(pattern, [self._find_all(record, group) for group in groups])
        plan.machines = self._find_all(record, machines)
        plan.check(self._running(record))
        fault = self._new(
            PARTITION, record, plan.named, "", seed=seed, held=held, is_random=pattern == "majorities-ring"
        )
        arcs = plan.arcs(lambda some: self._ports(record, some), fault.seed or 0)
        fault.summary = f"{plan.render()}" + ("" if mode == "drop" else f", mode {mode}")
        return await self._begin(fault, record, arcs, _MODES[mode], for_s)

    def _new(
        self,
        kind: str,
        network: NetworkRecord,
        machines: Sequence[Machine],
        summary: str,
        *,
        seed: int | None,
        held: bool,
        is_random: bool,
    ) -> FaultRecord:
        chosen = seed if seed is not None else new_seed() if is_random else None
        ids = list(dict.fromkeys(machine.id for machine in machines))
        return FaultRecord(
            id=new_fault_id(),
            kind=kind,
            summary=summary,
            network=network.id,
            machines=ids,
            seed=chosen,
            held=held,
        )

    async def _begin(
        self,
        fault: FaultRecord,
        network: NetworkRecord,
        arcs: Sequence[Arc],
        words: Mapping[str, Any],
        for_s: float | None,
    ) -> FaultRecord:
        rule = LinkFault(fault.id, fault.seed or 0, tuple(arcs), Words(**words))
        self._check_alone(rule, network)
        fault.settings = {"rule": rule.to_dict()}
        return await self._faults.begin(fault, lambda: self._networks.tell_faults(network), for_s=for_s)

    def _check_alone(self, rule: LinkFault, network: NetworkRecord) -> None:
        for other in self._faults.of_network(network.id):
            if "rule" not in other.settings:
                continue
            for word in rule.contradicts(LinkFault.from_dict(other.settings["rule"])):
                what = "cuts one of these links in another way" if word == "cut" else f"sets {word} already"
                raise Conflict(
                    f"fault {other.id} {what} ({other.summary})",
                    hint=f"bough fault heal {other.id}",
                    fault=other.id,
                )

    async def _tell_switch(self, fault: FaultRecord) -> None:
        for network in self._networks.store:
            if network.id == fault.network:
                await self._networks.tell_faults(network)

    # -- machines and networks ----------------------------------------------------------------------

    def _network_of(self, machines: Sequence[str], reference: str | None) -> NetworkRecord:
        """Return the named network, or the only one that all machines are on."""
        if reference is not None:
            return self._networks.find(reference)
        if not machines:
            raise InvalidInput("name the network", hint="--network NAME; bough network list shows all")
        found = [self._inventory.find(name) for name in machines]
        common = [one for one in self._networks.store if _has_all(self._networks.users(one), found)]
        if len(common) == 1:
            return common[0]
        names = " and ".join(f"'{machine.name}'" for machine in found[:2])
        if common:
            listed = ", ".join(one.name for one in common)
            raise InvalidInput(f"{names}: which network, {listed}?", hint=f"--network {common[0].name}")
        if len(found) == 1:
            raise Conflict(f"machine {names} is on no network", hint="bough network attach NETWORK MACHINE")
        raise Conflict(f"{names} are on no common network", hint="bough network info NAME lists machines")

    def _find_all(self, network: NetworkRecord, names: Sequence[str]) -> list[Machine]:
        """Return the running machines of these names on the network."""
        return [self._find(network, name) for name in names]

    def _find(self, network: NetworkRecord, name: str) -> Machine:
        users = self._networks.users(network)
        # In a fork of a project, a role means the machine of the same fork.
        named = [one for one in users if name in (one.record.network_name, one.name, one.id)]
        own = [one for one in named if not one.record.standby]
        machine = own[0] if len(own) == 1 else self._inventory.find(name)
        if machine not in users:
            raise Conflict(
                f"machine '{machine.name}' is not on network '{network.name}'",
                hint=f"bough network info {network.name}",
                machine=machine.name,
            )
        check_runs(machine)
        return machine

    def _running(self, network: NetworkRecord) -> list[Machine]:
        users = self._networks.users(network)
        running = (one for one in users if one.state in LIVE and not one.record.standby)
        return sorted(running, key=lambda machine: machine.record.network_name)

    def _ports(self, network: NetworkRecord, machines: Sequence[Machine]) -> frozenset[str]:
        return frozenset(port for one in machines for port in self._networks.ports_of(network, one))


class Plan:
    """The machines of a partition, and its links.

    Attributes:
        machines: those named outside of groups; for a ring without names, all machines of the network.
    """

    def __init__(self, pattern: Pattern, groups: list[list[Machine]]) -> None:
        self._pattern = pattern
        self.groups = groups
        self.machines: list[Machine] = []

    @property
    def named(self) -> list[Machine]:
        return [machine for group in self.groups for machine in group] + self.machines

    def check(self, running: Sequence[Machine]) -> None:
        """Complete the plan with the machines of the network. Raises InvalidInput."""
        self._check_names()
        if self._pattern == "groups" and (len(self.groups) < 2 or not all(self.groups)):
            raise InvalidInput("a partition has two groups or more, each with a machine")
        if self._pattern == "isolate" and not self.machines:
            raise InvalidInput("name the machines to isolate")
        if self._pattern == "bridge":
            self._complete_bridge(running)
        if self._pattern == "majorities-ring":
            self.machines = self.machines or list(running)
            if len(self.machines) < _LEAST_RING:
                raise InvalidInput(
                    f"a ring of majorities has {_LEAST_RING} machines or more, not {len(self.machines)}"
                )

    def _check_names(self) -> None:
        seen: set[str] = set()
        for machine in self.named:
            if machine.id in seen:
                raise InvalidInput(
                    f"machine '{machine.name}' is named twice", hint="each machine is in one group"
                )
            seen.add(machine.id)

    def _complete_bridge(self, running: Sequence[Machine]) -> None:
        if len(self.machines) != 1:
            raise InvalidInput("a bridge is one machine, which sees both sides")
        if not self.groups:
            others = [one for one in running if one is not self.machines[0]]
            self.groups = [others[: len(others) // 2], others[len(others) // 2 :]]
        if len(self.groups) != 2 or not all(self.groups):
            raise InvalidInput("a bridge has two sides, each with a machine")

    def arcs(self, ports: Callable[[Sequence[Machine]], frozenset[str]], seed: int) -> list[Arc]:
        """Return the cut links."""
        if self._pattern == "isolate":
            alone = [ports([machine]) for machine in self.machines]
            return [arc for own in alone for arc in (Arc(own, None), Arc(None, own))]
        if self._pattern == "majorities-ring":
            return _ring(self.machines, ports, seed)
        return [Arc(ports(one), ports(other)) for one, other in permutations(self.groups, 2)]

    def render(self) -> str:
        names = [" ".join(machine.name for machine in group) for group in self.groups]
        own = " ".join(machine.name for machine in self.machines)
        if self._pattern == "isolate":
            return f"{own} isolated"
        if self._pattern == "majorities-ring":
            return f"ring of majorities: {own}"
        parted = f"partition {' | '.join(names)}"
        return f"{parted}, {own} sees both sides" if self.machines else parted


def _ring(
    machines: Sequence[Machine], ports: Callable[[Sequence[Machine]], frozenset[str]], seed: int
) -> list[Arc]:
    """Return the cuts that let each machine see only its nearest neighbors on a ring, a majority with
    itself.
    """
    ring = sorted(machines, key=lambda machine: machine.record.network_name)
    Random(seed).shuffle(ring)
    count = len(ring)
    reach = (count // 2 + 1) // 2  # neighbors on each side: 2 * reach + 1 is a majority
    arcs = []
    for place, machine in enumerate(ring):
        near = {(place + step) % count for step in range(-reach, reach + 1)}
        far = [ring[other] for other in range(count) if other not in near]
        if far:
            arcs.append(Arc(ports([machine]), ports(far)))
    return arcs


def check_runs(machine: Machine) -> None:
    """Raise WrongState if the machine has no QEMU in which a fault could be."""
    if machine.state not in LIVE:
        raise WrongState(
            f"machine '{machine.name}' is {machine.state}; only a running machine gets a fault",
            hint=f"bough start {machine.name}",
            machine=machine.name,
            state=str(machine.state),
        )


def render_words(words: Mapping[str, Any]) -> str:
    """Return the words for people: "delay 100 ms, loss 10%"."""
    return ", ".join(_render_word(name, value) for name, value in words.items())


def _render_word(name: str, value: Any) -> str:
    if name in ("delay", "jitter"):
        return f"{name} {format_duration(value)}"
    return f"{name} {value} bit/s" if name == "rate" else f"{name} {value:g}%"


def _is_random(words: Mapping[str, Any]) -> bool:
    return Words(**words).is_random


def _has_all(users: Collection[Machine], machines: Collection[Machine]) -> bool:
    return all(machine in users for machine in machines)
