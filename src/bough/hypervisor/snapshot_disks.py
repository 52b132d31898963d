"""The disks of a snapshot with memory, with the writes that the guest still held in its memory.

A guest writes files to its disk some seconds late. So the disks of a snapshot with memory lack the last
files. A throw-away fork without a network continues from the snapshot, its file systems are quiesced, and
its disks have everything.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import replace

from bough.errors import HostLacks
from bough.forks.saved_states import SavedStates
from bough.forks.urgency import Trial, Urgency
from bough.hypervisor.fork_maker import ForkMaker, ForkOrder
from bough.hypervisor.lifetimes import Lifetimes
from bough.hypervisor.snapshot_keeper import SnapshotKeeper
from bough.machines.record import new_machine_id
from bough.progress import Progress, Report
from bough.snapshots.store import SnapshotManifest
from bough.tasks import finish


class SnapshotDisks:
    def __init__(
        self, keeper: SnapshotKeeper, states: SavedStates, maker: ForkMaker, lifetimes: Lifetimes
    ) -> None:
        self._keeper = keeper
        self._states = states
        self._maker = maker
        self._lifetimes = lifetimes

    @asynccontextmanager
    async def complete(self, manifest: SnapshotManifest, report: Report) -> AsyncIterator[SnapshotManifest]:
        """Yield a snapshot of the disks, which is deleted afterwards. The caller uses `manifest`.

        Raises:
            BoughError: the snapshot cannot be continued here.
        """
        report(Progress("continuing the snapshot, to see all its files"))
        with ExitStack() as used:
            yield await self._take(manifest, used, report)

    async def _take(self, manifest: SnapshotManifest, used: ExitStack, report: Report) -> SnapshotManifest:
        """Return a snapshot that is in use until `used` ends, although its machine is deleted."""
        saved = await self._states.get(manifest)
        # A fork would write to the host's directories.
        if saved is None or manifest.image_agent is None or manifest.spec.mounts:
            raise HostLacks("a snapshot without memory, without the agent, or with shared directories")
        order = ForkOrder(
            manifest,
            replace(saved, prewarm=Trial(Urgency(True))),  # the start of a fork that no user gets
            "keep",
            name=f"diff-{new_machine_id()}",
            ephemeral=True,
            standby=True,
        )
        machine = await self._maker.make(order)
        self._lifetimes.pin(machine)
        try:
            await machine.wait_ready()
            taken = await self._keeper.take(machine, memory=False, keep=False, report=report)
            used.callback(self._keeper.release, taken)
            used.enter_context(self._keeper.tree.using(taken))
            return taken
        finally:
            await finish(self._lifetimes.delete_standby(machine))
