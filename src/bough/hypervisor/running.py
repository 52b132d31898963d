"""`run`: a new machine that has answered, from a kept snapshot of the booted image or from a spare."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Any

from bough.errors import (
    AgentTimeout,
    AgentUnavailable,
    BoughError,
    Conflict,
    DeadlineExceeded,
    GuestRefused,
    InvalidInput,
    MachineFailed,
    NoSpace,
    NotFound,
)
from bough.guest.channel import AgentChannel
from bough.hypervisor.base import EPHEMERAL_GRACE_S
from bough.hypervisor.branches import Branches
from bough.images.store import ImageManifest, split_label
from bough.machines.booted import wait_booted
from bough.machines.first_boot import run_script
from bough.machines.identity import prepare_guest
from bough.machines.machine import Machine
from bough.machines.plan import check_arch, host_arch, resolve_hardware
from bough.machines.record import State
from bough.mounts.source import resolve_mounts
from bough.paths import Home
from bough.progress import Progress, Report, ignore_progress, notice
from bough.qemu.choice import choose_accelerator
from bough.qemu.host import read_host_facts
from bough.qemu.probe import find_qemu, probe_accelerators, probe_jail
from bough.snapshots.kind import Kind
from bough.snapshots.ready import (
    SETTLE_SCRIPT,
    SETTLE_TIMEOUT_S,
    can_be_ready,
    find_ready,
    is_neutral,
    neutral,
    ready_key,
    stale,
)
from bough.snapshots.spares import Of
from bough.snapshots.store import SnapshotManifest
from bough.spec import MachineSpec, check_against_host, parse_spec

log = logging.getLogger("bough.hypervisor")


#: How often a spare is woken before somebody wants it, and how long it stands still before each time.
_REHEARSALS = 2
_STANDS_STILL_S = 0.2


class Running(Branches):
    def __init__(self, home: Home) -> None:
        super().__init__(home)
        self._making_ready: dict[str, asyncio.Lock] = {}

    async def run(
        self,
        data: dict[str, Any],
        *,
        name: str | None = None,
        force: bool = False,
        ephemeral: bool = False,
        cold: bool = False,
        timeout_s: float | None = None,
        report: Report = ignore_progress,
    ) -> Machine:
        """A new machine that has answered: gone on from a kept snapshot of the booted image where its
        spec allows that (see snapshots/ready.py), booted otherwise.

        Args:
            cold: boot it in any case.

        Raises:
            As `create`: nothing was made. MachineFailed, AgentTimeout, GuestRefused: it did not come up; it
            stays unless it is ephemeral.
        """
        spec = resolve_mounts(parse_spec(data), self._hidden)
        check_against_host(spec, await read_host_facts(self.home), force=force)
        if name is not None:
            with self._reserve(name):
                pass  # told before an image is booted
        machine = None
        if name is None and not cold and is_neutral(spec):
            machine = await self._take_spare(self._can_run(spec), name=None, ephemeral=ephemeral)
        manifest = (
            None if cold or machine is not None else await self._ready_snapshot(spec, report, timeout_s)
        )
        if manifest is not None and is_neutral(spec):
            self.ahead.expect(Kind(manifest, "new", spec))
        try:
            with self.ahead.forking():
                if manifest is not None:
                    machine = await self._run_from(manifest, spec, name, ephemeral, report)
                if machine is None:
                    machine = await self.create(
                        data, name=name, force=force, ephemeral=ephemeral, report=report
                    )
                with self.hold(machine, grace_s=EPHEMERAL_GRACE_S):
                    if machine.state is State.STOPPED:
                        await machine.start(report)
                    await machine.wait_ready(timeout_s=timeout_s, report=report)
            return machine
        except BaseException:
            if ephemeral and machine is not None:
                self._expire_unless_held(machine.id, grace_s=0)
            raise

    async def _run_from(
        self,
        manifest: SnapshotManifest,
        spec: MachineSpec,
        name: str | None,
        ephemeral: bool,
        report: Report,
        *,
        spare: bool = False,
    ) -> Machine | None:
        """None: the snapshot is of no use, and was removed."""
        report(Progress("starting from the booted image"))
        try:
            with self.snapshots.using(manifest):
                saved = await self.snapshots.saved_state(manifest)
                machine = None
                if not spare:
                    machine = await self._fork_begun(Kind(manifest, "new", spec), name, ephemeral)
                return machine or await self._fork(
                    manifest, name, saved, "new", ephemeral, spec=spec, spare=spare
                )
        except MachineFailed as error:
            log.warning("cannot go on from the booted image %s: %s", manifest.id, error)
            report(notice(f"the machine boots: the kept snapshot of its booted image is of no use ({error})"))
            self._delete_snapshot(manifest)
            return None

    def want_spares(self, data: dict[str, Any], count: int) -> None:
        """For runs of that spec. Raises InvalidSpec for one that cannot stand by."""
        if count and not is_neutral(parse_spec(data)):
            raise InvalidInput(
                "a spare has no host name, users, files, commands, ports, limits or mounts of its own",
                hint="leave those out; a run that asks for them takes no spare",
            )
        self.spares.want({"spec": data}, count)

    def _can_run(self, spec: MachineSpec) -> Callable[[Machine], bool]:
        """Whether a spare is of that spec, and of the image that its label stands for now."""
        try:
            digest = self.images.resolve(spec.image, spec.arch).digest
        except (NotFound, Conflict):
            return lambda _: False
        return lambda spare: (
            spare.record.forked_from is None
            and spare.record.spec == spec
            and spare.record.image_digest == digest
        )

    async def _make_spare(self, of: Of) -> Machine:
        if "snapshot" in of:
            manifest = self.snapshots.store.resolve(of["snapshot"])
            with self.snapshots.using(manifest):
                saved = await self.snapshots.saved_state(manifest)
                machine = await self._fork(manifest, None, saved, "new", True, spare=True)
            return await self._stand_by(machine)
        spec = parse_spec(of["spec"])
        ready = await self._ready_snapshot(spec, ignore_progress)
        if ready is None:
            raise InvalidInput(
                f"machines of {spec.image} with these settings boot each time, and have no spares"
            )
        made = await self._run_from(ready, spec, None, True, ignore_progress, spare=True)
        if made is None:
            raise MachineFailed("what is kept of the booted image is damaged; it is made anew")
        return await self._stand_by(made)

    async def _stand_by(self, machine: Machine) -> Machine:
        """It has answered and settled, has run a command, has been woken before, and stands still."""
        self._holders[machine.id] = 1
        try:
            await machine.wait_ready()
            channel = await machine.agent()
            for _ in range(3):
                await run_script(channel, "true", timeout_s=60)
            await machine.wait_settled()
            await run_script(channel, "true", timeout_s=60)
            if isinstance(channel, AgentChannel):
                await prepare_guest(channel)
            await machine.pause()
            for _ in range(_REHEARSALS):
                await asyncio.sleep(_STANDS_STILL_S)
                await machine.standby.rehearse()
        except BaseException:
            await asyncio.shield(self._discard_spare(machine))
            raise
        return machine

    async def _rouse_spare(self, of: Of, machine: Machine) -> None:
        """See Spares. Raises BoughError: it is of no use."""
        if "spec" in of:
            await machine.standby.rouse()

    async def _ready_snapshot(
        self, spec: MachineSpec, report: Report, timeout_s: float | None = None
    ) -> SnapshotManifest | None:
        """Of the booted image on that hardware, made where there is none; None: this one is booted.

        Raises:
            AgentTimeout: it was not made within `timeout_s`, a bound that a user gave.
        """
        check_arch(spec.arch or split_label(spec.image)[1] or host_arch())
        image = await self.image(spec.image, spec.arch, report)
        if not can_be_ready(spec, image):
            return None
        qemu = find_qemu(image.arch)
        hardware = await resolve_hardware(spec, image, self.home, machine_id="ready", taken_uids=())
        jail = await probe_jail(qemu, self.home)
        accelerator = choose_accelerator(spec.accelerator, await probe_accelerators(qemu, jail, self.home))
        key = ready_key(spec, image, hardware, accelerator.name, qemu.version)
        lock = self._making_ready.setdefault(key, asyncio.Lock())
        bound = asyncio.timeout(timeout_s)
        try:
            async with bound, lock:
                found = find_ready(self.snapshots.store, key)
                return found or await self._make_ready(neutral(spec, image), image, key, report)
        except (
            MachineFailed,
            NoSpace,
            AgentUnavailable,
            GuestRefused,
            DeadlineExceeded,
            TimeoutError,
        ) as error:
            if bound.expired():
                raise _not_booted_in_time(spec.image, timeout_s) from None
            log.warning("no snapshot of the booted %s could be kept: %s", spec.image, error)
            why = f"no snapshot of the booted image could be kept ({error})"
            report(notice(f"the machine boots once more: {why}"))
            return None

    async def _make_ready(
        self, spec: MachineSpec, image: ImageManifest, key: str, report: Report
    ) -> SnapshotManifest:
        report(Progress("booting the image, once for all later runs"))
        with self._reserve(f"boot-{key[:12]}") as name, self._half_made(), self._using(image.digest):
            machine = await self._create(spec, name, image, True, report)
        try:
            with self.hold(machine):
                await machine.start(report)
                with contextlib.suppress(DeadlineExceeded):  # what it still starts, its forks start
                    await wait_booted(machine, report=report)
                await run_script(await machine.agent(), SETTLE_SCRIPT, timeout_s=SETTLE_TIMEOUT_S)
                manifest = await self._take(machine, ready_key=key, report=report)
        finally:
            with contextlib.suppress(BoughError):
                await asyncio.shield(self.delete(machine, force=True))
        self._drop_ready(stale(self.snapshots.store, self._image_digests()))
        return manifest


def _not_booted_in_time(image: str, timeout_s: float | None) -> AgentTimeout:
    return AgentTimeout(
        f"the image {image} did not boot within {timeout_s:g} s",
        hint="give it more time with --timeout, or none: then it has as long as it makes progress",
        timeout_s=timeout_s,
    )
