"""Networks: private Ethernet segments between the machines of one home."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from functools import partial
from ipaddress import IPv4Network
from typing import Any

from bough.errors import BoughError, Conflict, InUse, InvalidInput, NameTaken, NotFound
from bough.hypervisor.inventory import Inventory
from bough.hypervisor.network_cards import Card, Way, cards_on, way_out
from bough.hypervisor.network_uplinks import WayOut
from bough.hypervisor.references import network_by_name
from bough.hypervisor.switches import Switch
from bough.machines.events import Events
from bough.machines.machine import Machine
from bough.machines.plan import host_arch
from bough.machines.record import MachineRecord, now
from bough.machines.state import LIVE
from bough.networks.addresses import choose_network
from bough.networks.record import DEFAULT_MTU, NetworkRecord, new_network_id
from bough.networks.store import NetworkStore
from bough.networks.switch.settings import LEAST_MTU, MOST_MTU
from bough.networks.switch_control import read_capture
from bough.networks.uplink import find_passt
from bough.paths import Home
from bough.projects.record import ProjectRecord
from bough.projects.store import ProjectStore
from bough.qemu.binary import find_qemu
from bough.qemu.jail import Jail, machine_uid
from bough.qemu.jail_probe import probe_jail
from bough.spec import check_name
from bough.spec.nic import ISOLATED, UPLINK
from bough.spec.subnet import check_subnet, parse_subnet
from bough.tasks import Tasks

log = logging.getLogger("bough.hypervisor")

#: Events after which another set of machines belongs on a network, or a machine has another name.
_CHANGES = frozenset({"running", "paused", "stopped", "failed", "suspended", "renamed"})


class Networks:
    """Networks, and the machines on them. A network's switch runs while a machine on the network runs.

    Attributes:
        faults_of: returns the faults of a network's links (see switch/link_fault.py).
        after_delete: called with a deleted network.
    """

    def __init__(
        self,
        home: Home,
        events: Events,
        store: NetworkStore,
        inventory: Inventory,
        projects: ProjectStore,
    ) -> None:
        self.store = store
        self._projects = projects
        self._home = home
        self._events = events
        self._inventory = inventory
        self._switches: dict[str, Switch] = {}
        self._tasks = Tasks()
        self.faults_of: Callable[[NetworkRecord], list[dict[str, Any]]] = lambda _: []
        self.after_delete: list[Callable[[NetworkRecord], Awaitable[None]]] = []

    async def open(self) -> None:
        """Adopt the switches of an earlier service. Call after the machines were adopted."""
        for record in self.store:
            try:
                await (await self._switch_of(record)).sync()
            except (BoughError, OSError) as error:
                log.error("the network %s does not work: %s", record.name, error)
        self._tasks.begin(self._follow(), "follow the machines on networks")

    async def close(self) -> None:
        """Let go of the switches; they run on. A switch without machines ends."""
        await self._tasks.end()
        for switch in self._switches.values():
            with contextlib.suppress(BoughError, OSError):
                await switch.sync()
            await switch.let_go()
        for record in self.store:
            self._remove_ports(record)

    # -- use cases --------------------------------------------------------------------------------

    def find(self, reference: str) -> NetworkRecord:
        """Return the network with that name or id. A network of a project is also "network.project", or its
        name alone if no other network has the name.

        Raises:
            NotFound: no network matches. Conflict: several projects have the network, or its record is
                damaged.
        """
        try:
            return self.store.find(reference)
        except NotFound:
            record = network_by_name(reference, self.store, self._projects)
            if record is None:
                raise
            return record

    def create(
        self,
        name: str,
        *,
        subnet: str | None = None,
        mtu: int | None = None,
        internal: bool = True,
        project: ProjectRecord | None = None,
    ) -> NetworkRecord:
        """Create a network.

        Args:
            subnet: an IPv4 network like "10.1.0.0/24"; None: derived from the names of project and network.
            mtu: bytes of a frame's payload; None: 1500.
            internal: False: the network has an uplink.
            project: the network's project. Networks of other projects may have the name and the subnet.

        Raises:
            InvalidInput, NameTaken, NoSpace: nothing was made.
            Conflict: the subnet overlaps with another one.
        """
        owner = project.id if project is not None else None
        check_name(name)
        if name in (UPLINK, ISOLATED):
            raise InvalidInput(f"'{name}' has a meaning of its own", hint="choose another name")
        if any(record.name == name and record.project == owner for record in self.store):
            raise NameTaken(
                f"a network named '{name}' exists already",
                hint=f"choose another name, or delete it: bough network delete {name}",
                name=name,
            )
        _check_mtu(mtu)
        wanted = parse_subnet(subnet) if subnet is not None else None
        peers = self._peers(owner)
        domain = project.domain if project is not None else None
        chosen = choose_network(domain, name, peers, subnet=wanted)
        record = NetworkRecord(
            id=new_network_id(),
            name=name,
            project=owner,
            domain=domain,
            subnet=chosen.subnet,
            prefix6=chosen.prefix6,
            switch_mac=chosen.switch_mac,
            mtu=mtu or DEFAULT_MTU,
            internal=internal,
            created=now(),
        )
        self.store.add(record)
        return record

    async def change(
        self, record: NetworkRecord, *, subnet: str | None, mtu: int | None, internal: bool
    ) -> NetworkRecord:
        """Change a network that no running machine uses. Its machines' next start chooses fitting addresses.

        Args:
            subnet, mtu: None: as before.
            internal: see NetworkRecord.

        Raises:
            InvalidInput, NoSpace. Conflict: a machine runs, or the subnet overlaps with another one.
        """
        if any(machine.state in LIVE for machine in self.users(record)):
            raise Conflict(f"a machine on network '{record.name}' runs", hint="stop it first")
        _check_mtu(mtu)
        wanted = parse_subnet(subnet) if subnet is not None else record.subnet
        if wanted != record.subnet:
            check_subnet(wanted, self._peers(record.project, other_than=record))
        await self._end_switch(record)
        changed = record.model_copy(update={"subnet": wanted, "mtu": mtu or record.mtu, "internal": internal})
        self.store.add(changed)
        return changed

    def _peers(self, project: str | None, *, other_than: NetworkRecord | None = None) -> list[IPv4Network]:
        """Return the subnets that a machine of the project may see: of the project, and of the home."""
        peers = [record for record in self.store if record.project in (None, project)]
        return [record.subnet for record in peers if other_than is None or record.id != other_than.id]

    async def _end_switch(self, record: NetworkRecord) -> None:
        switch = self._switches.pop(record.id, None)
        if switch is not None:
            await switch.sync()
            await switch.let_go()

    async def delete(self, reference: str) -> None:
        """Delete a network.

        Raises:
            NotFound. InUse: a machine has a card on it.
        """
        record = self.find(reference)
        users = [machine.name for machine in self.users(record) if not machine.record.standby]
        if not users and self.users(record):
            raise InUse(
                f"the network '{record.name}' is in use by a standby machine",
                hint="delete the snapshot of a machine on this network first: bough snapshot list",
            )
        if users:
            more = f" and {len(users) - 3} more" if len(users) > 3 else ""
            raise InUse(
                f"the network '{record.name}' is in use by {', '.join(users[:3])}{more}",
                hint=f"stop and detach each of them: bough network detach {record.name} {users[0]}",
                machines=users,
            )
        await self._end_switch(record)
        self.store.remove(record)
        for forget in self.after_delete:
            await forget(record)

    async def describe(self, record: NetworkRecord) -> dict[str, Any]:
        """Return what the API says about a network."""
        switch = self._switches.get(record.id)
        counters = await switch.counters() if switch is not None else []
        found = {one["port"]: one for one in counters}
        return {
            "id": record.id,
            "name": record.name,
            "project": record.project,
            "domain": record.domain,
            "subnet": str(record.subnet),
            "prefix6": str(record.prefix6),
            "resolver": str(record.addresses.switch_ipv4),
            "mtu": record.mtu,
            "internal": record.internal,
            "created": record.created,
            "switch": "running" if switch is not None and switch.runs else "stopped",
            "machines": [
                {
                    "machine": machine.name,
                    "state": str(machine.state),
                    **card.describe(),
                    "counters": found.get(card.port),
                }
                for machine in self.users(record)
                if not machine.record.standby
                for card in cards_on(record, machine.record)
            ],
        }

    async def capture(self, record: NetworkRecord, machines: Sequence[str]) -> AsyncIterator[bytes]:
        """Return the frames of a network from now on, in the form of pcapng.

        Args:
            machines: only frames that these machines send; none: all frames.

        Raises:
            NotFound: no such machine. Conflict: no machine on the network runs.
        """
        wanted = [self._inventory.find(name) for name in machines]
        users = {machine.id for machine in self.users(record)}
        ports = [card.port for machine in wanted for card in cards_on(record, machine.record)]
        if any(machine.id not in users for machine in wanted):
            raise Conflict(f"not all of these machines are on the network '{record.name}'")
        switch = self._switches.get(record.id)
        if switch is None or not switch.runs:
            raise Conflict(
                f"no machine on the network '{record.name}' runs",
                hint="start one; a capture begins with the first machine",
            )
        return await read_capture(self._home.network(record.id).control_socket, ports)

    @contextlib.asynccontextmanager
    async def holding(self, networks: Collection[str]) -> AsyncIterator[None]:
        """Have the switches of networks, given by their ids, hold all frames in the block."""
        async with contextlib.AsyncExitStack() as stack:
            for network in networks:
                switch = self._switches.get(network)
                if switch is not None:
                    await stack.enter_async_context(switch.holding())
            yield

    async def tell_faults(self, record: NetworkRecord) -> None:
        """Pass the present faults of a network's links on to its switch. Raises SwitchLost, HostLacks."""
        await (await self._switch_of(record)).sync()

    # -- machines ---------------------------------------------------------------------------------

    def ports_of(self, record: NetworkRecord, machine: Machine) -> list[str]:
        """Return the names of the ports of a machine on the network."""
        return [card.port for card in cards_on(record, machine.record)]

    async def join(self, machine: MachineRecord) -> None:
        """Let a starting machine onto the machine's networks. Choose missing addresses.

        Raises:
            NotFound, Conflict, HostLacks
        """
        if machine.throw_away:
            return
        networks = {name: self.store.find(name, machine.project) for name in machine.spec.networks}
        way = way_out(machine, networks)
        for record in networks.values():
            self._choose_addresses(machine, record, way)
        for record in networks.values():
            switch = await self._switch_of(record)
            for card in cards_on(record, machine):
                self.store.make_port(record, card.port, switch.uid)
            await switch.sync()

    async def _follow(self) -> None:
        """Keep the switches in step with the machines."""
        async for event in self._events.watch():
            machine = self._inventory.get(event.machine)
            names = machine.record.spec.networks if machine is not None else [one.name for one in self.store]
            if event.kind not in _CHANGES or not names:
                continue
            await self._settle(names)

    def forget(self, machine: Machine) -> None:
        """Take a deleted machine off its networks, in a task. A standby machine has no events to follow."""
        if machine.record.spec.networks:
            self._tasks.begin(self._settle(machine.record.spec.networks), f"forget {machine.id}")

    async def _settle(self, names: Collection[str]) -> None:
        """Put the switches of networks in step with the machines that run now."""
        for record in [record for record in self.store if record.name in names]:
            try:
                await (await self._switch_of(record)).sync()
                self._remove_ports(record)
            except (BoughError, OSError) as error:
                log.error("the switch of network %s is not in step: %s", record.name, error)

    def _choose_addresses(
        self, machine: MachineRecord, record: NetworkRecord, way: Way | None = None
    ) -> None:
        others = [one for one in self.users(record) if one.id != machine.id]
        taken = {one for other in others for card in cards_on(record, other.record) for one in card.reserved}
        for card in cards_on(record, machine):
            self._check_free(card, [other for other in others if other.state in LIVE])
            card.link(machine.network_name, taken, way=way if way and way.place == card.nic.place else None)
            if card.is_way_out:
                find_passt()
            taken |= card.reserved

    def _check_free(self, card: Card, others: Sequence[Machine]) -> None:
        """Raise Conflict if a running machine has an address of the card, like the parent of a fork with a
        kept identity.
        """
        for other in others:
            for one in cards_on(card.network, other.record):
                if one.nic.mac == card.nic.mac or (one.ipv4 is not None and one.ipv4 == card.ipv4):
                    raise Conflict(
                        f"machine '{other.name}' has the same address on network '{card.network.name}'",
                        hint=f"stop '{other.name}' first, or fork without --identity keep",
                        machine=other.name,
                    )

    def _members(self, record: NetworkRecord) -> dict[str, dict[str, Any]]:
        """Return the switch's members: the running machines."""
        return {
            card.port: card.member()
            for machine in self.users(record)
            if machine.state in LIVE
            for card in cards_on(record, machine.record)
            if card.ipv4 is not None
        }

    def _ways_out(self, record: NetworkRecord, jail: Jail) -> dict[str, WayOut]:
        """Return port -> settings of the uplink, for running machines that reach the outside through it."""
        return {
            card.port: WayOut(
                machine.id,
                machine.record.hardware.uid,
                tuple(f"{base}/{machine.id}" for base in jail.groups),
                card.uplink_addresses,
            )
            for machine in self.users(record)
            if machine.state in LIVE
            for card in cards_on(record, machine.record)
            if card.is_way_out
        }

    def _remove_ports(self, record: NetworkRecord) -> None:
        """Remove the ports of machines that do not run."""
        live = [machine for machine in self.users(record) if machine.state in LIVE]
        self.store.keep_ports(record, {card.port for one in live for card in cards_on(record, one.record)})

    def users(self, record: NetworkRecord) -> list[Machine]:
        return [machine for machine in self._inventory if self._uses(machine.record, record)]

    def _uses(self, machine: MachineRecord, network: NetworkRecord) -> bool:
        used = self.store.used_by(machine.spec.networks, machine.project)
        return not machine.throw_away and any(one.id == network.id for one in used)

    async def _switch_of(self, record: NetworkRecord) -> Switch:
        switch = self._switches.get(record.id)
        if switch is None:
            jail = await probe_jail(find_qemu(host_arch()), self._home)
            uid = machine_uid(record.id, self._inventory.taken_uids()) if os.geteuid() == 0 else None
            paths = self._home.network(record.id)
            members, faults = partial(self._members, record), partial(self.faults_of, record)
            ways = partial(self._ways_out, record, jail)
            switch = Switch(record, paths, jail, uid, members, faults, ways)
            switch = self._switches.setdefault(record.id, switch)
        return switch


def _check_mtu(mtu: int | None) -> None:
    if mtu is not None and not LEAST_MTU <= mtu <= MOST_MTU:
        raise InvalidInput(f"an MTU is between {LEAST_MTU} and {MOST_MTU} bytes, not {mtu}")
