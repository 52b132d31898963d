"""Connect a stopped machine to a network, and disconnect it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from bough.errors import Conflict, InvalidInput
from bough.machines.mac_address import choose_mac_addresses
from bough.machines.machine import Machine
from bough.machines.record import Nic
from bough.machines.state import State
from bough.networks.record import NetworkRecord
from bough.networks.store import NetworkStore
from bough.spec import NicSpec, check_name
from bough.spec.nic import MOST_ALIASES, MOST_NICS, UPLINK

_AT_REST = (State.STOPPED, State.FAILED)


class References(Protocol):
    def find(self, reference: str) -> NetworkRecord: ...


class NetworkChanges:
    """Changes the cards of machines. A remaining card keeps its place and its addresses."""

    def __init__(self, store: NetworkStore, references: References) -> None:
        self._store = store
        self._references = references

    async def attach(self, machine: Machine, reference: str, *, aliases: Sequence[str] = ()) -> None:
        """Give a stopped machine a card on a network. The guest sees the card at its next boot.

        Raises:
            NotFound: no such network.
            InvalidInput: the machine has as many cards as it can have, or an alias is no name.
            WrongState: the machine is not stopped.
            Conflict: the machine is on the network already, or the network is another project's.
        """
        network = self._find(reference, machine)
        for alias in aliases:
            check_name(alias)
        if len(aliases) > MOST_ALIASES:
            raise InvalidInput(f"a machine has at most {MOST_ALIASES} aliases on a network")
        async with machine.operation("being connected to a network", *_AT_REST):
            cards, hardware = machine.record.spec.network_cards, machine.record.hardware
            if network.name in machine.record.spec.networks:
                raise Conflict(f"machine '{machine.name}' is on network '{network.name}' already")
            if len(cards) >= MOST_NICS:
                raise InvalidInput(
                    f"machine '{machine.name}' has {MOST_NICS} network cards, the most there can be"
                )
            mac = choose_mac_addresses([*hardware.mac_addresses, None])[-1]
            place = min(set(range(MOST_NICS)) - {nic.place for nic in hardware.nics})
            card = NicSpec(network=network.name, aliases=tuple(aliases))
            nic = Nic(mac=mac, model=hardware.nic_model, place=place)
            self._change(machine, (*cards, card), [*hardware.nics, nic])

    async def detach(self, machine: Machine, reference: str) -> None:
        """Take the cards on a network out of a stopped machine.

        Raises:
            NotFound: no such network.
            WrongState: the machine is not stopped.
            Conflict: the machine is not on the network.
        """
        network = self._find(reference, machine)
        async with machine.operation("being disconnected from a network", *_AT_REST):
            pairs = zip(machine.record.spec.network_cards, machine.record.hardware.nics, strict=True)
            left = [(card, nic) for card, nic in pairs if card.network != network.name]
            if len(left) == len(machine.record.hardware.nics):
                raise Conflict(f"machine '{machine.name}' is not on network '{network.name}'")
            self._change(machine, tuple(card for card, _ in left), [nic for _, nic in left])

    def _find(self, reference: str, machine: Machine) -> NetworkRecord:
        project = machine.record.project
        network = self._store.look_up(reference, project) or self._references.find(reference)
        seen = self._store.look_up(network.name, project)
        if seen is None or seen.id != network.id:
            raise Conflict(
                f"machine '{machine.name}' cannot use the network '{reference}' of another project",
                hint="bough network list shows the networks; machines share a network without a project",
            )
        return network

    def _change(self, machine: Machine, cards: tuple[NicSpec, ...], nics: list[Nic]) -> None:
        record = machine.record
        # The cards decide whether the machine is on the uplink. An empty list means "no card".
        uplink = any(card.network == UPLINK for card in cards)
        machine.change(
            spec=record.spec.model_copy(update={"nics": cards, "uplink": uplink}),
            hardware=record.hardware.model_copy(update={"nics": nics}),
        )
