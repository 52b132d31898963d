"""The Python API's faults of links between machines."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bough.client.fault import Fault, read_faults
from bough.contract.faults import AddLinkFault, AddPartition, HealFaults

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bough.client.connection import Connection
    from bough.client.machine import Machine
    from bough.contract.answers import FaultInfo
    from bough.contract.faults import Direction, Mode

    Named = Machine | str


class LinkFaults:
    """Faults of the links of one network. A fault ends by `heal`, at the end of its `with` block, or when
    this program ends.

    Every call can raise these errors of bough.errors:
    - NotFound: no such machine.
    - InvalidInput: the arguments contradict each other, or name a machine twice.
    - WrongState: a machine does not run.
    - Conflict: a machine is not on the network, or another fault contradicts.
    """

    def __init__(self, api: Connection, network: str) -> None:
        self._api = api
        self._network = network

    def link_fault(
        self,
        machine: Named,
        *peers: Named,
        direction: Direction = "both",
        delay: float = 0.0,
        jitter: float = 0.0,
        loss: float = 0.0,
        correlation: float = 0.0,
        duplicate: float = 0.0,
        corrupt: float = 0.0,
        reorder: float = 0.0,
        rate: str | int = 0,
        for_s: float | None = None,
        seed: int | None = None,
    ) -> Fault:
        """Make the links of a machine slow or unreliable: all of them, or only those to some peers.

        Args:
            direction: "to": only frames to the machine; "from": only frames from the machine.
            delay, jitter: in seconds. Frames come late by delay - jitter to delay + jitter, in order.
            loss, duplicate, corrupt, reorder: percentage of frames that are lost, come twice, have a wrong
                bit, or overtake delayed frames.
            correlation: percentage of frames that are treated like the frame before.
            rate: bits per second, or a text like "1mbit".
            for_s: seconds after which the fault ends.
            seed: repeats the random choices of an earlier fault.
        """
        from bough.units import parse_rate

        request = AddLinkFault(
            machine=_name(machine),
            peers=[_name(peer) for peer in peers],
            network=self._network,
            direction=direction,
            delay=delay,
            jitter=jitter,
            loss=loss,
            correlation=correlation,
            duplicate=duplicate,
            corrupt=corrupt,
            reorder=reorder,
            rate=parse_rate(rate) if rate else 0,
            for_s=for_s,
            seed=seed,
            held=True,
        )
        return Fault(self._api, self._api.send(request))

    def partition(
        self, groups: Sequence[Sequence[Named]], *, mode: Mode = "drop", for_s: float | None = None
    ) -> Fault:
        """Cut all links between machines of different groups. Machines in no group see all others.

            with network.partition([["db"], ["app", "web"]]):
                ...

        Args:
            mode: "drop": frames are lost; "hold": frames are kept, and delivered at the end; "slow": frames
                are 0.5 to 1.5 s late.
        """
        parts = [[_name(machine) for machine in group] for group in groups]
        request = AddPartition(groups=parts, network=self._network, mode=mode, for_s=for_s, held=True)
        return Fault(self._api, self._api.send(request))

    def isolate(self, *machines: Named, mode: Mode = "drop", for_s: float | None = None) -> Fault:
        """Cut all links of each of the machines."""
        request = AddPartition(
            pattern="isolate",
            machines=[_name(machine) for machine in machines],
            network=self._network,
            mode=mode,
            for_s=for_s,
            held=True,
        )
        return Fault(self._api, self._api.send(request))

    def bridge(
        self,
        machine: Named,
        groups: Sequence[Sequence[Named]] = (),
        *,
        mode: Mode = "drop",
        for_s: float | None = None,
    ) -> Fault:
        """Cut the network in two. Only `machine` sees both sides.

        Args:
            groups: the two sides; none: the other machines in the order of their names, halved.
        """
        request = AddPartition(
            pattern="bridge",
            machines=[_name(machine)],
            groups=[[_name(one) for one in group] for group in groups],
            network=self._network,
            mode=mode,
            for_s=for_s,
            held=True,
        )
        return Fault(self._api, self._api.send(request))

    def majorities_ring(
        self,
        *machines: Named,
        mode: Mode = "drop",
        seed: int | None = None,
        for_s: float | None = None,
    ) -> Fault:
        """Let each machine see a majority of the machines, and no two the same majority.

        Args:
            machines: four or more; none: all running machines of the network.
            seed: decides the neighbors.
        """
        request = AddPartition(
            pattern="majorities-ring",
            machines=[_name(machine) for machine in machines],
            network=self._network,
            mode=mode,
            seed=seed,
            for_s=for_s,
            held=True,
        )
        return Fault(self._api, self._api.send(request))

    def heal(self) -> list[FaultInfo]:
        """End all faults of the network's links. Return them."""
        return read_faults(self._api.send_long(HealFaults(network=self._network)))


def _name(machine: Named) -> str:
    return machine if isinstance(machine, str) else machine.id
