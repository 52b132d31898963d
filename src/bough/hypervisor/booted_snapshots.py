"""Booted snapshots: what `run` forks instead of booting. See forks/booted.py."""

from __future__ import annotations

import asyncio
import contextlib
import logging

from bough.errors import (
    AgentTimeout,
    AgentUnavailable,
    BoughError,
    DeadlineExceeded,
    GuestRefused,
    MachineFailed,
    NoSpace,
)
from bough.forks.booted import (
    SETTLE_SCRIPT,
    SETTLE_TIMEOUT_S,
    booted_key,
    can_fork_booted,
    find_booted,
    neutral,
)
from bough.hypervisor.agent_disks import AgentDisks
from bough.hypervisor.creation import Creation
from bough.hypervisor.image_source import ImageSource
from bough.hypervisor.lifetimes import Lifetimes
from bough.hypervisor.names import Names
from bough.hypervisor.snapshot_keeper import SnapshotKeeper
from bough.images.store import ImageManifest, split_label
from bough.machines.booted import wait_booted
from bough.machines.first_boot import run_script
from bough.machines.plan import check_arch, host_arch, resolve_hardware
from bough.paths import Home
from bough.progress import Progress, Report, notice
from bough.qemu.accelerators import probe_accelerators
from bough.qemu.binary import find_qemu
from bough.qemu.choice import choose_accelerator
from bough.qemu.jail_probe import probe_jail
from bough.snapshots.store import SnapshotManifest
from bough.spec import MachineSpec
from bough.spec.program import check_settings
from bough.tasks import finish

log = logging.getLogger("bough.hypervisor")


_BOOT_FAILURES = (MachineFailed, NoSpace, AgentUnavailable, GuestRefused, DeadlineExceeded, TimeoutError)


class BootedSnapshots:
    def __init__(
        self,
        home: Home,
        source: ImageSource,
        creation: Creation,
        names: Names,
        keeper: SnapshotKeeper,
        lifetimes: Lifetimes,
        agent_disks: AgentDisks,
    ) -> None:
        self._home = home
        self._source = source
        self._creation = creation
        self._names = names
        self._keeper = keeper
        self._lifetimes = lifetimes
        self._agent_disks = agent_disks
        #: Key -> lock: a single boot serves all waiting runs.
        self._boots: dict[str, asyncio.Lock] = {}

    async def find(
        self, spec: MachineSpec, report: Report, timeout_s: float | None = None
    ) -> SnapshotManifest | None:
        """Return the booted snapshot for the spec; boot the image once if no snapshot exists.

        None: a machine of the spec boots. If a failure costs the user a boot, `report` gets the reason.

        Raises:
            InvalidSpec: a setting does not fit the image.
            AgentTimeout: the image did not boot within `timeout_s`, the user's bound.
        """
        check_arch(spec.arch or split_label(spec.image)[1] or host_arch())
        image = await self._source.find(spec.image, spec.arch, report)
        check_settings(spec, image.container)
        if not can_fork_booted(spec, image):
            return None
        key = await self._key(spec, image, await self._agent_disks.for_image(image, report))
        bound = asyncio.timeout(timeout_s)
        try:
            async with bound, self._boots.setdefault(key, asyncio.Lock()):
                found = find_booted(self._keeper.tree.store, key)
                return found or await self._boot(neutral(spec, image), image, key, report)
        except _BOOT_FAILURES as error:
            if bound.expired():
                raise _not_booted_in_time(spec.image, timeout_s) from None
            log.warning("no snapshot of the booted %s could be kept: %s", spec.image, error)
            why = f"no snapshot of the booted image could be kept ({error})"
            report(notice(f"the machine boots once more: {why}"))
            return None

    async def _key(self, spec: MachineSpec, image: ImageManifest, agent_disk: str | None) -> str:
        qemu = find_qemu(image.arch)
        hardware = await resolve_hardware(spec, image, self._home, machine_id="ready", taken_uids=())
        jail = await probe_jail(qemu, self._home)
        found = await probe_accelerators(qemu, jail, self._home)
        accelerator = choose_accelerator(spec.accelerator, found)
        return booted_key(spec, image, hardware, accelerator.name, qemu.version, agent_disk)

    async def _boot(
        self, spec: MachineSpec, image: ImageManifest, key: str, report: Report
    ) -> SnapshotManifest:
        report(Progress("booting the image, once for all later runs"))
        with self._names.reserve(f"boot-{key[:12]}") as name:
            machine = await self._creation.create_from(spec, name, image, ephemeral=True, report=report)
        try:
            with self._lifetimes.hold(machine):
                machine.program.leave_out()
                await machine.start(report)
                with contextlib.suppress(DeadlineExceeded):  # forks start the services that are left
                    await wait_booted(machine, report=report)
                await run_script(await machine.agent(), SETTLE_SCRIPT, timeout_s=SETTLE_TIMEOUT_S)
                manifest = await self._keeper.take(machine, booted_key=key, report=report)
        finally:
            with contextlib.suppress(BoughError):
                await finish(self._lifetimes.delete(machine, force=True))
        self._keeper.drop_stale_booted()
        return manifest


def _not_booted_in_time(image: str, timeout_s: float | None) -> AgentTimeout:
    return AgentTimeout(
        f"the image {image} did not boot within {timeout_s:g} s",
        hint="use a longer --timeout, or none: a boot that makes progress then takes as long as it needs",
        timeout_s=timeout_s,
    )
