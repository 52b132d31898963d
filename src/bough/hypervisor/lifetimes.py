"""Lifetimes of machines: deletion, clients of ephemeral machines, expiry after a disconnect."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bough.errors import BoughError, Conflict, NotFound, WrongState
from bough.hypervisor.half_made import HalfMade
from bough.hypervisor.inventory import Inventory
from bough.machines.machine import Machine
from bough.machines.state import LIVE, State
from bough.storage import remove_tree, sync_directory, sync_tree
from bough.tasks import Tasks, finish

log = logging.getLogger("bough.hypervisor")

#: Grace period of an ephemeral machine without a client, which reconnects after a restart of the service.
EPHEMERAL_GRACE_S = 30.0
_EXPIRE_AGAIN_S = 1.0
_DEPARTURE_S = 10.0


class Lifetimes:
    """Ends machines.

    Attributes:
        closing: the service is ending. Clients lose their connections and reconnect to the next service.
    """

    def __init__(self, inventory: Inventory, half_made: HalfMade) -> None:
        self.closing = False
        self._inventory = inventory
        self._half_made = half_made
        #: Machine id -> number of clients.
        self._holders: dict[str, int] = {}
        self._all_departed = asyncio.Event()
        self._tasks = Tasks()

    async def end(self) -> None:
        """End the background work."""
        await self._tasks.end()

    @contextmanager
    def hold(self, machine: Machine, *, grace_s: float = 0) -> Iterator[None]:
        """Keep an ephemeral machine alive in this block, and for `grace_s` after the last such block."""
        self._holders[machine.id] = self._holders.get(machine.id, 0) + 1
        try:
            yield
        finally:
            self._holders[machine.id] -= 1
            if not self._holders[machine.id]:
                del self._holders[machine.id]
                if machine.record.ephemeral and machine.id in self._inventory and not self.closing:
                    self.expire_unless_held(machine.id, grace_s=grace_s)

    def pin(self, machine: Machine) -> None:
        """Keep a standby machine until `unpin` or its deletion."""
        self._holders[machine.id] = 1

    def unpin(self, machine: Machine) -> None:
        self._holders.pop(machine.id, None)

    async def keep(self, machine: Machine) -> None:
        """Make an ephemeral machine a kept one, which survives its client, and a power loss of the host.

        Raises:
            NoSpace, OSError: the machine is still ephemeral.
        """
        if machine.record.ephemeral:
            await finish(asyncio.to_thread(sync_tree, machine.paths.root))
            machine.change(ephemeral=False)
            sync_directory(self._inventory.home.machines)

    async def delete(self, machine: Machine, *, force: bool = False) -> None:
        """Delete a machine with its disks.

        Raises:
            WrongState: the machine runs and `force` was not given.
            Conflict: another operation is under way.
        """
        with machine.claim("being deleted"):
            if machine.state in LIVE:
                if not force:
                    raise WrongState(
                        f"machine '{machine.name}' is {machine.state}; only a stopped machine is deleted",
                        hint=f"bough stop {machine.name}, or delete it with --force",
                        machine=machine.name,
                        state=str(machine.state),
                    )
                with contextlib.suppress(WrongState):  # QEMU ended meanwhile
                    await machine.stop(force=True, flush=False)
            async with machine.operation("being deleted", State.STOPPED, State.FAILED, State.SUSPENDED):
                await self._bury(machine)

    async def delete_standby(self, machine: Machine) -> None:
        """Delete a machine never seen by a user. After an error the next start of the service deletes the
        machine.
        """
        self.unpin(machine)
        with contextlib.suppress(BoughError):
            await self.delete(machine, force=True)

    def discard(self, machine: Machine) -> None:
        """Remove an ephemeral machine from the list at once, and delete it in the background."""
        if not machine.record.ephemeral:
            raise Conflict(f"machine '{machine.name}' is kept", hint=f"bough delete {machine.name}")
        if machine.id not in self._inventory:
            return
        self._inventory.leaving.add(machine.id)
        self._all_departed.clear()
        self.expire_unless_held(machine.id, grace_s=0)

    def discard_unclaimed(self, machine: Machine) -> None:
        """Discard a standby machine, or a machine after a failed claim. The name is free at once."""
        machine.record.standby = machine.record.ephemeral = True
        self.unpin(machine)
        self.discard(machine)

    async def wait_departed(self) -> None:
        """Wait for the deletion of discarded machines, at most 10 s: to callers, discarded
        machines are gone.
        """
        if self._inventory.leaving:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_DEPARTURE_S):
                    await self._all_departed.wait()

    def expire_unless_held(self, machine_id: str, grace_s: float = EPHEMERAL_GRACE_S) -> None:
        """Delete an ephemeral machine after `grace_s`, unless a client holds the machine then."""
        self._tasks.begin(self._expire(machine_id, grace_s), f"expire {machine_id}")

    async def _expire(self, machine_id: str, pause_s: float) -> None:
        while True:
            await asyncio.sleep(pause_s)
            machine = self._inventory.get(machine_id)
            if machine is None or not machine.record.ephemeral:
                self._departed(machine_id)
                return
            if machine_id in self._holders and machine_id not in self._inventory.leaving:
                return
            try:
                await self.delete(machine, force=True)
            except (NotFound, Conflict):
                pause_s = _EXPIRE_AGAIN_S  # another operation, a snapshot for example, ends first
            # try again: no other task deletes the machine
            except (BoughError, OSError) as error:
                log.warning("machine %s cannot be deleted: %s", machine.name, error)
                pause_s = EPHEMERAL_GRACE_S
            except BaseException:
                self._departed(machine_id)
                raise
            else:
                pause_s = _EXPIRE_AGAIN_S

    async def _bury(self, machine: Machine) -> None:
        machine.restarter.cancel()
        home = self._inventory.home
        with self._half_made.working():
            grave = home.incoming / f"{machine.id}.deleted"
            machine.paths.root.rename(grave)
            if not machine.record.ephemeral:
                sync_directory(home.machines)
            self._inventory.remove(machine)
            machine.bury()
            machine.tell("deleted")
            try:
                await finish(asyncio.to_thread(_remove_all, grave, machine.paths.runtime))
            finally:
                self._inventory.collect()
                self._departed(machine.id)

    def _departed(self, machine_id: str) -> None:
        self._inventory.leaving.discard(machine_id)
        if not self._inventory.leaving:
            self._all_departed.set()


def _remove_all(*paths: Path) -> None:
    for path in paths:
        remove_tree(path)
