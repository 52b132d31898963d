"""Everything of one BOUGH_HOME."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Literal

from bough.audit.files import Look
from bough.audit.store import audit_store
from bough.audit.sweep import sweep_runtime, sweep_unfinished_writes
from bough.hypervisor.base import EPHEMERAL_GRACE_S, remove_tree
from bough.hypervisor.images import Images
from bough.hypervisor.running import Running
from bough.images.bootstrap import remove_build
from bough.machines.autostart import start_machines
from bough.machines.clock import ClockKeeper, follow_host
from bough.machines.condition import Kind
from bough.machines.disks import read_disk_usage, remove_strays
from bough.machines.machine import Machine
from bough.machines.mounts import add_mount, describe_mounts
from bough.machines.plan import host_arch
from bough.machines.record import LIVE, MachineRecord, PortForward, State
from bough.mounts.source import resolve_mount
from bough.networks.state import describe_uplink
from bough.progress import Report, ignore_progress
from bough.qemu.cgroup import find_groups
from bough.qemu.probe import find_qemu, probe_jail
from bough.snapshots.ready import stale
from bough.snapshots.suspend import resume, suspend, sweep_suspended
from bough.spec import parse_mount

log = logging.getLogger("bough.hypervisor")


class Hypervisor(Running, Images):
    """Everything of one BOUGH_HOME. Create, `open()`, use, `close()`."""

    async def open(self) -> None:
        """Sweep what is half-made, read every record, take up every machine that runs."""
        self.home.create()
        self.snapshots.store.open()
        for stray in self.home.incoming.iterdir():
            await asyncio.to_thread(remove_build if stray.is_dir() else remove_tree, stray)
        sweep_unfinished_writes(self.home)
        sweep_runtime(self.home)
        for root in sorted(self.home.machines.iterdir()):
            paths = self.home.machine(root.name)
            if paths.record.exists() and not paths.record.stat().st_size:
                # An ephemeral one, which is not synced: a power cut took what was written.
                await asyncio.to_thread(remove_tree, root)
                continue
            try:
                record = MachineRecord.read(paths)
            except (OSError, ValueError) as error:
                # One that is damaged must not keep the others from being used.
                log.error("the record of machine %s cannot be read: %s", root.name, error)
                self._unreadable[root.name] = str(error)
                self.snapshots.store.keep_all(root.name)
            else:
                self._machines[record.id] = self._machine_of(record, paths)
        async with asyncio.TaskGroup() as group:
            for machine in self._machines.values():
                group.create_task(machine.adopt())
        for machine in self._machines.values():
            remove_strays(machine.paths, machine.record)
            sweep_suspended(machine.paths, machine.record)
        self.snapshots.settle()
        self._drop_ready(stale(self.snapshots.store, self._image_digests()))
        self._collect()
        for machine in self._machines.values():
            if machine.record.ephemeral:
                # A spare was the last service's, and nobody comes back for it.
                self._expire_unless_held(machine.id, 0 if machine.record.spare else EPHEMERAL_GRACE_S)
        self._tasks.begin(follow_host(self._clocks), "follow the host's clock")
        self._tasks.begin(start_machines(self.machines(), self.events), "autostart")
        self.spares.open()

    def _clocks(self) -> list[ClockKeeper]:
        return [machine.clock for machine in self._present()]

    async def close(self) -> None:
        """Let go of the machines; they run on. What stood by, and what was discarded, does not."""
        await self.spares.close()
        await self.ahead.clear()
        for machine in [one for one in self._machines.values() if one.record.spare]:
            self.discard(machine)  # it was just being started, which has to end first
        await self._see_off()
        await self._tasks.end()
        await self.snapshots.close()
        await asyncio.gather(*(machine.let_go() for machine in self._machines.values()))

    async def start(self, machine: Machine, *, cold: bool = False, report: Report = ignore_progress) -> bool:
        """Until its vCPUs run; a suspended one goes on, unless `cold` gives its memory up.

        Returns whether it ran already: then nothing was done.
        """
        if await _is_already(machine, "starting", State.RUNNING):
            return True
        if machine.state is not State.SUSPENDED:
            await machine.start(report)
        elif cold:
            with machine.claim("starting"):
                await machine.stop(force=True)
                await machine.start(report)
        else:
            await resume(machine, report)
        return False

    async def stop(
        self,
        machine: Machine,
        *,
        deadline_s: float | None = None,
        force: bool = False,
        report: Report = ignore_progress,
    ) -> Literal["guest", "power", "already"]:
        """See Machine.stop; "already": it did not run, and is not about to."""
        at_rest = [State.STOPPED] if machine.record.restarts.next else [State.STOPPED, State.FAILED]
        if await _is_already(machine, "stopping", *at_rest):
            return "already"
        how = await machine.stop(deadline_s=deadline_s, force=force, report=report)
        return "guest" if how == "guest" else "power"

    async def pause(self, machine: Machine) -> bool:
        """Returns whether it was paused already."""
        if await _is_already(machine, "pausing", State.PAUSED):
            return True
        await machine.pause()
        return False

    async def suspend(self, machine: Machine, *, report: Report = ignore_progress) -> bool:
        """See snapshots/suspend.py. Returns whether it was suspended already."""
        if await _is_already(machine, "being suspended", State.SUSPENDED):
            return True
        with self._half_made():
            await suspend(machine, self.home, report)
        return False

    async def resume(self, machine: Machine, *, report: Report = ignore_progress) -> bool:
        """Let a paused or suspended machine run; wake a guest that sleeps. Return whether it ran already."""
        if machine.condition.is_now(Kind.ASLEEP):
            await machine.condition.wake()
            return False
        if await _is_already(machine, "resuming", State.RUNNING):
            return True
        if machine.state is State.SUSPENDED:
            await resume(machine, report)
        else:
            await machine.resume()
        return False

    async def restart(
        self, machine: Machine, *, deadline_s: float | None = None, report: Report = ignore_progress
    ) -> None:
        """Stop and start: the guest sees the power go and come back. Goes on when the caller is cancelled."""

        async def work() -> None:
            with machine.claim("being restarted"):
                await machine.stop(deadline_s=deadline_s, report=report)
                await machine.start(report)

        await asyncio.shield(machine.own(work(), "restart"))

    def rename(self, machine: Machine, name: str) -> None:
        if name == machine.name:
            return
        with self._reserve(name):
            machine.rename(name)

    def describe(self, machine: Machine) -> dict[str, Any]:
        record = machine.record
        return {
            "id": record.id,
            "name": record.name,
            "state": str(record.state),
            "unreachable": machine.reach.trouble,
            "agent": machine.agent_state if record.state in LIVE else "none",
            "condition": machine.condition.found.to_dict() if machine.condition.found else None,
            "image": record.spec.image,
            "image_digest": record.image_digest,
            "created": record.created,
            "started": record.started if record.state in LIVE else None,
            "vcpus": record.spec.vcpus,
            "memory_bytes": record.spec.memory,
            "disk_bytes": read_disk_usage(machine.paths),
            "layers": machine.chains.depth,
            "ports": [forward.model_dump() for forward in record.ports],
            "mounts": describe_mounts(machine),
            "accelerator": record.accelerator,
            "accelerator_note": record.accelerator_note,
            "hardware": record.hardware.model_dump(),
            "jail": record.jail,
            "restarts": record.restarts.model_dump(),
            "failure": record.failure.model_dump() if record.failure else None,
            "first_boot": record.first_boot.model_dump(),
            "hostname": record.hostname,
            "identity_error": record.identity_error,
            "ephemeral": record.ephemeral,
            "suspended": record.suspended.model_dump() if record.suspended else None,
            "snapshot": record.snapshot,
            "forked_from": record.forked_from,
            "boot_id": machine.boot_id,
            "seen": machine.boot_sight.describe() if record.state in LIVE else None,
            "booted": machine.booted if record.state in LIVE and record.image_agent else None,
            "pid": machine.pid,
            "vnc": str(machine.paths.vnc_socket) if machine.pid and record.media.display else None,
            "spec": record.spec.model_dump(mode="json"),
        }

    async def describe_fully(self, machine: Machine) -> dict[str, Any]:
        """And what takes a look at the host: too long for each machine of a list."""
        uplink = None
        if machine.pid is not None and machine.record.spec.uplink is True:
            uplink = await asyncio.to_thread(describe_uplink, machine.id)
        return {**self.describe(machine), "uplink": uplink}

    async def mount(self, machine: Machine, data: dict[str, Any]) -> None:
        """See machines.mounts.add_mount."""
        await add_mount(machine, resolve_mount(parse_mount(data), self._hidden))

    async def add_port(self, machine: Machine, forward: PortForward) -> PortForward:
        return await machine.add_port(forward)

    async def audit(self, *, repair: bool, report: Report) -> dict[str, Any]:
        """Whether everything on disk is as it should be; see audit/."""
        await self._see_off()
        live = {machine.id for machine in self._machines.values() if machine.state in LIVE}
        jail = await probe_jail(find_qemu(host_arch()), self.home)
        look = Look(self.home, live, making=self._making > 0, group_bases=find_groups(), jail=jail)
        return await audit_store(look, self._keep_still, repair=repair, report=report)

    @asynccontextmanager
    async def _keep_still(self, machine_id: str) -> AsyncIterator[None]:
        """The machine is not started, and not deleted, until the block ends.

        Raises:
            Conflict: it runs, or something else is done with it just now.
        """
        states = (State.STOPPED, State.FAILED, State.SUSPENDED)
        async with self.machine(machine_id).transition("being checked", *states):
            yield


async def _is_already(machine: Machine, doing: str, *states: State) -> bool:
    """Return whether the machine is in one of the states, and no operation would change that.

    Raises:
        Conflict, NotFound: as a transition does.
    """
    if machine.state not in states:
        return False
    async with machine.transition(doing, *states):
        return True
