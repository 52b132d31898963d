"""All faults of a home: kept on disk, listed, held by clients, ended.

begin    the record is written first, then the fault is made: a crash leaves no unlisted fault
end      `heal`, the time given with the fault, the end of its holder, of its QEMU, of its machines
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bough.errors import BoughError, Conflict, InvalidInput, NotFound
from bough.hypervisor.inventory import Inventory
from bough.machines.events import Events
from bough.machines.faults.record import FaultRecord, read_faults, write_faults
from bough.machines.machine import Machine
from bough.machines.state import LIVE
from bough.networks.store import NetworkStore
from bough.tasks import Tasks, finish

log = logging.getLogger("bough.hypervisor")

#: How long a held fault waits for its client, which reconnects after a restart of the service.
HOLD_GRACE_S = 30.0
_AGAIN_S = 5.0
_MOST_FAULTS = 1000
_LEAST_PREFIX = 3

Undo = Callable[[FaultRecord], Awaitable[None]]


class Faults:
    """The table of faults.

    Attributes:
        undo: kind -> how a fault of this kind is undone. Undoing twice is harmless, and after the end of the
            fault's process.
        go_on: kind -> called for a new fault, and for a present fault by a new service.
        closing: the service is ending. Clients lose their connections, and faults stay.
    """

    def __init__(self, path: Path, events: Events, inventory: Inventory, networks: NetworkStore) -> None:
        self.undo: dict[str, Undo] = {}
        self.go_on: dict[str, Callable[[FaultRecord], None]] = {}
        self.closing = False
        self._path = path
        self._events = events
        self._inventory = inventory
        self._networks = networks
        self._faults: dict[str, FaultRecord] = {}
        self._holders: dict[str, int] = {}
        self._turns: dict[str, asyncio.Lock] = {}
        self._tasks = Tasks()

    def read(self) -> None:
        """Read the file of all faults. Call before the switches are adopted: they are told the faults."""
        try:
            self._faults = {fault.id: fault for fault in read_faults(self._path)}
        except (OSError, ValueError) as error:
            log.error("the list of faults cannot be read: %s", error)

    async def open(self) -> None:
        """Continue all faults. Call after the machines were adopted."""
        for fault in list(self._faults.values()):
            if self._is_over(fault):
                await self._forget(fault, "its machine has ended")
            else:
                self._note(fault)
                self._schedule(fault)
        self._tasks.begin(self._follow(), "follow the machines with faults")

    async def close(self) -> None:
        """Leave the faults to the next service."""
        self.closing = True
        await self._tasks.end()

    # -- the table ----------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[FaultRecord]:
        return iter(list(self._faults.values()))

    def of_network(self, network_id: str) -> list[FaultRecord]:
        return [fault for fault in self if fault.network == network_id]

    def of_machine(self, machine: Machine, kind: str | None = None) -> list[FaultRecord]:
        return [fault for fault in self if machine.id in fault.machines and kind in (None, fault.kind)]

    def find(self, reference: str) -> FaultRecord:
        """Return the fault with that id, or beginning of an id. Raises NotFound."""
        long = len(reference) >= _LEAST_PREFIX
        found = [one for one in self if one.id == reference or (long and one.id.startswith(reference))]
        if len(found) != 1:
            problem = "is ambiguous: use more digits" if found else "is no fault"
            raise NotFound(f"{reference[:80]!r} {problem}", hint="bough fault list", kind="fault")
        return found[0]

    def describe(self, fault: FaultRecord) -> dict[str, Any]:
        """Return what the API says about a fault."""
        machines = [self._inventory.get(one) for one in fault.machines]
        network = next((one.name for one in self._networks if one.id == fault.network), None)
        ends = None if fault.ends is None else datetime.fromtimestamp(fault.ends, UTC)
        return {
            "id": fault.id,
            "kind": fault.kind,
            "summary": fault.summary,
            "network": network,
            "machines": [machine.name for machine in machines if machine is not None],
            "seed": fault.seed,
            "held": fault.held,
            "ends": None if ends is None else ends.isoformat(timespec="milliseconds"),
            "created": fault.created,
        }

    # -- begin and end ------------------------------------------------------------------------------

    async def begin(
        self, fault: FaultRecord, make: Callable[[], Awaitable[None]], *, for_s: float | None
    ) -> FaultRecord:
        """Keep a fault, and make it.

        Args:
            for_s: how long the fault lasts, in seconds; None: until it is healed.

        Raises: as `make`; nothing is left then.
        """
        if for_s is not None and not 0 < for_s <= 366 * 86400:
            raise InvalidInput("a fault lasts between 0 seconds and a year")
        if len(self._faults) >= _MOST_FAULTS:
            raise Conflict(f"there are {_MOST_FAULTS} faults", hint="bough fault heal --all")
        if for_s is not None:
            fault.ends = time.time() + for_s
        self._keep(fault)  # at once: a check for contradictions just before sees all faults
        await finish(self._begin(fault, make))
        return fault

    async def _begin(self, fault: FaultRecord, make: Callable[[], Awaitable[None]]) -> None:
        async with self._turn(fault):
            try:
                await make()
            except BaseException:
                with contextlib.suppress(BoughError, OSError):
                    await self._undo(fault)
                raise
            self._note(fault)
            self.write()
        self._tell("fault", fault, fault.summary)
        self._schedule(fault)

    async def make_again(self, fault: FaultRecord, make: Callable[[], Awaitable[None]]) -> None:
        """Make a present fault once more, after a reboot of the guest. Raises as `make`; the fault stays."""
        async with self._turn(fault):
            if fault.id in self._faults:
                await make()

    async def heal(self, fault: FaultRecord, why: str = "healed") -> None:
        """Undo a fault. Does nothing if the fault has ended. Raises BoughError: the fault stays listed."""
        await finish(self._heal(fault, why))

    async def _heal(self, fault: FaultRecord, why: str) -> None:
        async with self._turn(fault):
            if fault.id not in self._faults:
                self._turns.pop(fault.id, None)
                return
            if self._is_over(fault):
                why = "its machine has ended"
            await self._undo(fault)
        self._tell("healed", fault, f"{fault.summary}: {why}")

    async def _undo(self, fault: FaultRecord) -> None:
        """Take the fault out of the table, undo it, and write the table."""
        del self._faults[fault.id]
        try:
            await self.undo[fault.kind](fault)
        except BaseException:
            self._faults[fault.id] = fault
            raise
        self._note(fault, is_present=False)
        self._turns.pop(fault.id, None)
        self.write()

    def _turn(self, fault: FaultRecord) -> asyncio.Lock:
        """Return the lock of one fault: a fault is not healed while it is being made."""
        return self._turns.setdefault(fault.id, asyncio.Lock())

    async def heal_all(self, faults: Collection[FaultRecord]) -> list[FaultRecord]:
        """Undo all of these faults, the newest first. Raises the first error, after all were tried."""
        first: BoughError | None = None
        for fault in sorted(faults, key=lambda one: one.created, reverse=True):
            try:
                await self.heal(fault)
            except BoughError as error:
                first = first or error
        if first is not None:
            raise first
        return list(faults)

    async def forget_network(self, network_id: str) -> None:
        """End the faults of a deleted network."""
        for fault in self.of_network(network_id):
            await self._forget(fault, "its network was deleted")

    @contextlib.contextmanager
    def hold(self, fault: FaultRecord) -> Iterator[None]:
        """Keep a held fault in this block. After the last such block the fault ends."""
        self._holders[fault.id] = self._holders.get(fault.id, 0) + 1
        try:
            yield
        finally:
            self._holders[fault.id] -= 1
            if not self._holders[fault.id]:
                del self._holders[fault.id]
                if fault.held and not self.closing and fault.id in self._faults:
                    self._tasks.begin(self._end(fault, 0), f"end fault {fault.id}")

    # -- in the background --------------------------------------------------------------------------

    def _schedule(self, fault: FaultRecord) -> None:
        if fault.kind in self.go_on:
            self.go_on[fault.kind](fault)
        if fault.held:
            self._tasks.begin(self._end(fault, HOLD_GRACE_S), f"end fault {fault.id}")
        if fault.ends is not None:
            self._tasks.begin(self._expire(fault), f"expire fault {fault.id}")

    async def _end(self, fault: FaultRecord, grace_s: float) -> None:
        """End a fault that no client holds."""
        await asyncio.sleep(grace_s)
        while fault.id in self._faults and fault.id not in self._holders:
            try:
                await self.heal(fault, "its client has disconnected")
            except (BoughError, OSError) as error:
                log.warning("the fault %s of a disconnected client cannot be undone: %s", fault.id, error)
                await asyncio.sleep(_AGAIN_S)

    async def _expire(self, fault: FaultRecord) -> None:
        await asyncio.sleep(max(0.0, (fault.ends or 0) - time.time()))
        while fault.id in self._faults:
            try:
                await self.heal(fault, "its time is over")
            except (BoughError, OSError) as error:
                log.warning("the fault %s cannot be undone: %s", fault.id, error)
                await asyncio.sleep(_AGAIN_S)

    async def _follow(self) -> None:
        """End the faults of QEMUs that have ended, and of deleted machines."""
        async for event in self._events.watch():
            for fault in self:
                if event.machine not in fault.machines:
                    continue
                if event.kind == "deleted":
                    fault.machines.remove(event.machine)
                if self._is_over(fault):
                    await self._forget(fault, "its machine has ended")

    def _is_over(self, fault: FaultRecord) -> bool:
        """Return whether the process or all machines of a fault have ended."""
        machines = [machine for one in fault.machines if (machine := self._inventory.get(one)) is not None]
        if fault.pid is None:
            return not machines
        return not any(machine.pid == fault.pid and machine.state in LIVE for machine in machines)

    async def _forget(self, fault: FaultRecord, why: str) -> None:
        try:
            await self._heal(fault, why)
        except (BoughError, OSError) as error:
            log.warning("the fault %s stays in the list: %s", fault.id, error)

    def _keep(self, fault: FaultRecord) -> None:
        self._faults[fault.id] = fault
        try:
            self.write()
        except BaseException:
            del self._faults[fault.id]
            raise

    def write(self) -> None:
        """Write all faults to disk, also after a change of a fault's settings. Raises NoSpace, OSError."""
        write_faults(self._path, list(self._faults.values()))

    def _note(self, fault: FaultRecord, *, is_present: bool = True) -> None:
        """Tell a machine about a fault that its snapshots must not contain."""
        if fault.pid is None:
            return
        for machine in map(self._inventory.get, fault.machines):
            if machine is not None and is_present:
                machine.faults.found[fault.id] = fault.summary
            elif machine is not None:
                machine.faults.found.pop(fault.id, None)

    def _tell(self, kind: str, fault: FaultRecord, detail: str) -> None:
        for machine in map(self._inventory.get, fault.machines):
            if machine is not None:
                machine.tell(kind, f"{detail} ({fault.id})")
