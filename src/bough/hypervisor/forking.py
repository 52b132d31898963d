"""`fork`: new machines from a machine or a snapshot."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from bough.errors import BoughError, HostLacks, InvalidInput
from bough.forks.fork_kind import ForkKind
from bough.forks.loaded import LoadedForks
from bough.forks.prewarm import Prewarming
from bough.forks.saved_states import SavedStates
from bough.forks.standby import StandbyMachines
from bough.hypervisor.description import report_emulation
from bough.hypervisor.fork_maker import ForkMaker, ForkOrder
from bough.hypervisor.inventory import Inventory
from bough.hypervisor.lifetimes import EPHEMERAL_GRACE_S, Lifetimes
from bough.hypervisor.snapshot_keeper import SnapshotKeeper
from bough.hypervisor.waiting_machines import WaitingMachines
from bough.machines.booted import wait_boot_end
from bough.machines.machine import Machine
from bough.progress import Progress, Report, ignore_progress
from bough.snapshots.store import SnapshotManifest
from bough.snapshots.tree import Identity

#: More forks at once only wait for each other.
_FORKS_AT_ONCE = max(2, os.cpu_count() or 2)
#: Smallest number of forks in a call for which a wait for a pre-warm pays off.
_MANY = 16


@dataclass
class _Call:
    """A call of `fork`.

    Attributes:
        kind: None if no waiting machine can serve: the snapshot was taken for this call, or has no memory.
        holds: keep the forks until all forks are made: then the client knows every fork.
    """

    order: ForkOrder
    kind: ForkKind | None
    names: list[str | None]
    wait: bool
    timeout_s: float | None
    holds: contextlib.ExitStack

    @property
    def takes_standby(self) -> bool:
        return self.kind is not None and self.order.identity == "new"


class Forking:
    def __init__(
        self,
        inventory: Inventory,
        lifetimes: Lifetimes,
        keeper: SnapshotKeeper,
        states: SavedStates,
        maker: ForkMaker,
        waiting: WaitingMachines,
        standby: StandbyMachines,
        loaded: LoadedForks,
        prewarming: Prewarming,
    ) -> None:
        self._inventory = inventory
        self._lifetimes = lifetimes
        self._keeper = keeper
        self._states = states
        self._maker = maker
        self._waiting = waiting
        self._standby = standby
        self._loaded = loaded
        self._prewarming = prewarming

    async def fork(
        self,
        reference: str,
        names: list[str | None],
        *,
        identity: Identity = "new",
        cold: bool = False,
        ephemeral: bool = False,
        wait: bool = True,
        now: bool = False,
        timeout_s: float | None = None,
        report: Report = ignore_progress,
    ) -> list[Machine | BoughError]:
        """Fork a machine, running or not, or a snapshot, once for each of `names`.

        Each fork succeeds or fails by itself. Forks of a running machine have answered, unless `cold`.

        Args:
            names: None generates one.
            cold: fork the disks alone; the forks are stopped.
            now: do not wait for the end of the source's boot; each fork finishes the boot by itself.

        Raises:
            NotFound, WrongState, ...: the source cannot be forked; nothing was made.
        """
        source = self._inventory.find_source(reference)
        if source is None:
            manifest = self._keeper.tree.store.resolve(reference)
        else:
            if not (cold or now):
                await wait_boot_end(source, report)
            manifest = await self._keeper.take(source, memory=not cold, keep=False, report=report)
        report(Progress("forking"))
        with self._keeper.of_source(source, manifest), contextlib.ExitStack() as holds:
            saved = None if cold else await self._states.get(manifest)
            kind = ForkKind(manifest, identity) if source is None and saved is not None else None
            order = ForkOrder(manifest, saved, identity, ephemeral=ephemeral)
            call = _Call(order, kind, names, wait, timeout_s, holds)
            await self._prewarm_for_many(call, report)
            holds.enter_context(self._loaded.forking())
            made = await self._make_all(call)
        report_emulation((one for one in made if isinstance(one, Machine)), report)
        return made

    async def _prewarm_for_many(self, call: _Call, report: Report) -> None:
        ready = self._standby.count(_is_fork_of(call.order.manifest)) if call.takes_standby else 0
        count = len(call.names) - ready
        if call.order.saved is None or count < _MANY:
            return
        report(Progress("preparing one fork, for all of them"))
        manifest = call.order.manifest
        await self._prewarming.wait_for_many(ForkKind(manifest, call.order.identity), count)
        call.order = replace(call.order, saved=await self._states.get(manifest))

    async def _make_all(self, call: _Call) -> list[Machine | BoughError]:
        limit = asyncio.Semaphore(_FORKS_AT_ONCE)

        async def one(name: str | None) -> Machine | BoughError:
            async with limit:
                try:
                    return await self._make_one(call, name)
                except BoughError as error:
                    return error
                except OSError as error:  # EMFILE, EIO: other forks may succeed
                    return HostLacks(f"the host failed: {error}")

        began = time.monotonic()
        made = list(await asyncio.gather(*(one(name) for name in call.names)))
        order = call.order
        if order.saved is not None and call.wait and len(made) >= _FORKS_AT_ONCE:
            self._prewarming.started(order.manifest.id, len(made), time.monotonic() - began)
        return made

    async def _make_one(self, call: _Call, name: str | None) -> Machine:
        machine = await self._take_waiting(call, name)
        if machine is None:
            machine = await self._maker.make(replace(call.order, name=name))
        call.holds.enter_context(self._lifetimes.hold(machine, grace_s=EPHEMERAL_GRACE_S))
        if call.order.saved is not None and call.wait:
            await machine.wait_ready(timeout_s=call.timeout_s)
            if len(call.names) > 1:
                _lower_priority(machine, call.holds)
        return machine

    async def _take_waiting(self, call: _Call, name: str | None) -> Machine | None:
        machine, order = None, call.order
        if call.takes_standby:
            machine = await self._waiting.take_standby(
                _is_fork_of(order.manifest), name=name, ephemeral=order.ephemeral
            )
        if machine is None and call.kind is not None:
            self._loaded.expect(call.kind)
            machine = await self._waiting.take_loaded(call.kind, name, order.stem, ephemeral=order.ephemeral)
        return machine

    def want_standby(self, reference: str, count: int) -> None:
        """Keep `count` standby forks of a snapshot; 0 stops keeping them.

        Raises:
            NotFound: there is no such snapshot. InvalidInput: its forks cannot stand by.
        """
        manifest = self._keeper.tree.store.resolve(reference)
        if count and (manifest.memory is None or not manifest.image_agent):
            lacks = "memory" if manifest.memory is None else "bough's agent"
            raise InvalidInput(
                f"the snapshot {reference} has no {lacks}, so its forks cannot stand by",
                hint="take one of a running machine whose image has the agent",
            )
        self._standby.want({"snapshot": manifest.id}, count)


def _is_fork_of(manifest: SnapshotManifest) -> Callable[[Machine], bool]:
    return lambda machine: machine.record.forked_from == manifest.id


def _lower_priority(machine: Machine, call: contextlib.ExitStack) -> None:
    """Lower the priority of a fork that has answered: the fork may settle after the others of the call."""
    machine.stand_back()
    if not machine.guest.settling:
        call.callback(machine.stand_back, False)
