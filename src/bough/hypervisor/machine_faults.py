"""Faults of single machines: cable, disk, clock, pressure, and those that happen at once.

A lasting fault is in a QEMU process or in its guest, and ends with the process. The machine refuses snapshots
meanwhile: a fork would have the fault, and no way to undo it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import Literal

from bough.errors import BoughError, Conflict, GuestRefused, InvalidInput
from bough.hypervisor.faults import Faults
from bough.hypervisor.inventory import Inventory
from bough.machines.faults import cable, clock, disk, pressure, strikes
from bough.machines.faults.record import FaultRecord, new_fault_id, new_seed
from bough.machines.machine import Machine
from bough.machines.record import ClockFault
from bough.machines.state import State
from bough.units import format_duration, format_size

Strike = Literal["crash", "reset", "panic", "power-cut"]

CABLE, PAUSE, DISK, CLOCK, PRESSURE = "cable", "pause", "disk", "clock", "pressure"
_ANY = (State.RUNNING, State.PAUSED)
_MOST_JUMP_S = 100 * 366 * 86400.0
_MOST_DRIFT_PPM = 100_000.0
_LOOK_S = 1.0


class MachineFaults:
    """Makes faults of machines."""

    def __init__(self, faults: Faults, inventory: Inventory) -> None:
        self._faults = faults
        self._inventory = inventory
        undo: dict[str, Callable[[Machine, FaultRecord], Awaitable[None]]] = {
            CABLE: self._plug_in,
            PAUSE: self._resume,
            DISK: self._mend_disk,
            CLOCK: self._set_right,
            PRESSURE: self._relieve,
        }
        faults.go_on[CLOCK] = self._follow_clock
        faults.go_on[PRESSURE] = self._follow_pressure
        for kind, action in undo.items():
            faults.undo[kind] = lambda fault, action=action: self._undo(fault, action)  # type: ignore[misc]

    # -- at once ------------------------------------------------------------------------------------

    async def strike(self, machine: Machine, how: Strike) -> None:
        """Break a machine at once; see strikes.py. Raises WrongState, GuestRefused, AgentUnavailable."""
        actions = {
            "crash": strikes.crash,
            "reset": strikes.reset,
            "panic": strikes.panic,
            "power-cut": strikes.cut_power,
        }
        self._check(machine, *_ANY)
        machine.tell("fault", how)
        await actions[how](machine)

    async def kill(self, machine: Machine, *, unit: str | None, process: str | None, signal: str) -> None:
        """Kill a service or a process in the guest; see strikes.kill_in_guest."""
        await strikes.kill_in_guest(machine, unit=unit, process=process, signal=signal)
        machine.tell("fault", f"{unit or process} got the signal {signal}")

    # -- lasting ------------------------------------------------------------------------------------

    async def unplug(
        self, machine: Machine, network: str | None, *, held: bool = False, for_s: float | None = None
    ) -> FaultRecord:
        """Pull the cable of a network card: the guest sees that the link is down.

        Raises:
            WrongState, Conflict: no such card, or its cable is pulled already. InvalidInput: which card?
        """
        self._check(machine, *_ANY)
        device, name = cable.find_card(machine.record, network)
        for fault in self._faults.of_machine(machine, CABLE):
            if fault.settings.get("device") == device:
                raise _taken(fault, "the cable is pulled already")
        fault = self._new(machine, CABLE, f"cable of {machine.name} to {name} pulled", held)
        fault.settings = {"device": device}

        async def make() -> None:
            async with machine.operation("losing a cable", *_ANY):
                await cable.set_link(machine.qmp(), device, up=False)

        return await self._faults.begin(fault, make, for_s=for_s)

    async def pause(self, machine: Machine, *, held: bool = False, for_s: float | None = None) -> FaultRecord:
        """Pause the vCPUs until the fault ends. Raises WrongState."""
        self._check(machine, State.RUNNING)
        fault = self._new(machine, PAUSE, f"{machine.name} paused", held)
        return await self._faults.begin(fault, machine.pause, for_s=for_s)

    async def fail_disk(
        self,
        machine: Machine,
        number: int,
        operation: str,
        *,
        error: str = "EIO",
        once: bool = False,
        rate: float | None = None,
        area: tuple[int, int] | None = None,
        seed: int | None = None,
        held: bool = False,
        for_s: float | None = None,
    ) -> FaultRecord:
        """Let requests to a disk fail; see disk.render_failure.

        The guest sees an I/O error. ENOSPC at a write pauses the machine, as a full disk of the host does;
        the machine continues when the fault ends.

        Raises:
            InvalidInput, WrongState, Conflict: the disk has a fault already, or an operation runs.
        """
        self._check(machine, *_ANY)
        name = disk.disk_name(machine.record, number)
        if operation not in disk.OPERATIONS:
            raise InvalidInput(f"{operation[:20]!r} is none of {', '.join(disk.OPERATIONS)}")
        chosen = new_seed() if seed is None and rate is not None else seed
        size = machine.record.disks[number].size_bytes
        rules = disk.render_failure(
            operation, error=error, once=once, rate=rate, area=area, size_bytes=size, seed=chosen or 0
        )
        where = f" at {format_size(area[0])} to {format_size(area[1])}" if area else ""
        share = f" ({rate:g}% of the blocks)" if rate is not None else ""
        what = f"{'the next ' if once else ''}{operation} of disk {number} of {machine.name}{where}{share}"
        fault = self._new(machine, DISK, f"{what} fails with {error.upper()}", held, seed=chosen)

        def put(node: str) -> Awaitable[str]:
            return disk.put_failure(machine.qmp(), name, node, rules)

        return await self._begin_disk(machine, fault, name, put, for_s)

    async def throttle_disk(
        self,
        machine: Machine,
        number: int,
        *,
        bytes_per_s: int = 0,
        iops: int = 0,
        held: bool = False,
        for_s: float | None = None,
    ) -> FaultRecord:
        """Slow a disk down, reads and writes together. Raises as `fail_disk`."""
        self._check(machine, *_ANY)
        name = disk.disk_name(machine.record, number)
        limits = disk.render_limits(bytes_per_s, iops)
        told = [f"{format_size(bytes_per_s)}/s"] if bytes_per_s else []
        told += [f"{iops} requests/s"] if iops else []
        summary = f"disk {number} of {machine.name} throttled to {', '.join(told)}"
        fault = self._new(machine, DISK, summary, held)

        def put(node: str) -> Awaitable[str]:
            return disk.put_throttle(machine.qmp(), name, node, limits)

        return await self._begin_disk(machine, fault, name, put, for_s)

    async def _begin_disk(
        self,
        machine: Machine,
        fault: FaultRecord,
        name: str,
        put: Callable[[str], Awaitable[str]],
        for_s: float | None,
    ) -> FaultRecord:
        top = await disk.present_node(machine.qmp(), name)
        for other in self._faults.of_machine(machine):
            if other.settings.get("disk") == name:
                raise _taken(other, "the disk has a fault already")
        node = f"fault-{fault.id}"
        fault.settings = {"disk": name, "node": node, "top": top}

        async def make() -> None:
            async with machine.operation("getting a disk's fault", *_ANY):
                # A merge changes the nodes of a disk. No merge begins while the fault is there.
                await machine.chains.give_way()
                fault.settings["top"] = await put(node)

        return await self._faults.begin(fault, make, for_s=for_s)

    async def set_clock(
        self,
        machine: Machine,
        *,
        jump_s: float = 0.0,
        to: float | None = None,
        drift_ppm: float = 0.0,
        held: bool = False,
        for_s: float | None = None,
    ) -> FaultRecord:
        """Set the guest's clock wrong, and stop the services that would set it right.

        Args:
            jump_s: seconds ahead of the time that the guest has now; negative: behind.
            to: or the time itself, as Unix time.
            drift_ppm: how much too fast the clock runs from now on; negative: too slow.

        Raises:
            InvalidInput, WrongState, Conflict: the clock is wrong already.
            AgentUnavailable, GuestRefused
        """
        self._check(machine, State.RUNNING)
        if not jump_s and to is None and not drift_ppm:
            raise InvalidInput("nothing to change", hint="--jump, --set or --drift")
        if jump_s and to is not None:
            raise InvalidInput("a clock jumps, or is set: not both")
        for other in self._faults.of_machine(machine, CLOCK):
            raise _taken(other, "the clock is wrong already")
        if to is not None:
            jump_s = to - time.time() - (machine.record.spec.clock_offset_s or 0)
        if abs(jump_s) > _MOST_JUMP_S or abs(drift_ppm) > _MOST_DRIFT_PPM:
            raise InvalidInput("a clock jumps by at most 100 years, and drifts by at most 100000 ppm")
        fault = self._new(machine, CLOCK, _render_clock(machine.name, jump_s, drift_ppm), held)

        async def make() -> None:
            fault.settings = {"stopped": await clock.stop_synchronization(machine)}
            wrong = ClockFault(jump_s=jump_s, drift_ppm=drift_ppm, since=time.time())
            machine.change(clock_fault=wrong)
            await _apply(machine)

        return await self._faults.begin(fault, make, for_s=for_s)

    async def press(
        self,
        machine: Machine,
        *,
        loops: int | None = None,
        memory_bytes: int | None = None,
        full: str | None = None,
        held: bool = False,
        for_s: float | None = None,
    ) -> FaultRecord:
        """Use the processors, the memory, or all free space of a file system of a guest.

        Args:
            loops: number of busy processes; 0: one for each vCPU.
            memory_bytes: memory to use. The kernel may kill other processes when its memory runs out.
            full: a directory; its file system is filled.

        Raises:
            InvalidInput, WrongState, AgentUnavailable
            GuestRefused: no such directory, or not so much memory.
        """
        self._check(machine, State.RUNNING)
        if sum(value is not None for value in (loops, memory_bytes, full)) != 1:
            raise InvalidInput("give one of processors, memory, and a file system")
        fault = self._new(machine, PRESSURE, "", held)
        if loops is not None:
            count = loops or machine.record.spec.vcpus
            pressure.check_loops(count)
            fault.summary = f"{count} busy processes in {machine.name}"
            fault.settings = {"loops": count}
        elif memory_bytes is not None:
            if memory_bytes < 1:
                raise InvalidInput("the memory is 1 byte at least")
            fault.summary = f"{format_size(memory_bytes)} of the memory of {machine.name} used"
            fault.settings = {"memory": memory_bytes}
        else:
            path = full or ""
            pressure.check_path(path)
            fault.summary = f"the file system of {path} of {machine.name} full"
            fault.settings = {"full": path}
        return await self._faults.begin(fault, lambda: _press(machine, fault), for_s=for_s)

    # -- undo ---------------------------------------------------------------------------------------

    async def _undo(
        self, fault: FaultRecord, action: Callable[[Machine, FaultRecord], Awaitable[None]]
    ) -> None:
        """Undo a fault, unless its process has ended."""
        for machine in map(self._inventory.get, fault.machines):
            if machine is not None and machine.pid == fault.pid:
                await action(machine, fault)

    async def _plug_in(self, machine: Machine, fault: FaultRecord) -> None:
        async with machine.operation("getting a cable", *_ANY):
            await cable.set_link(machine.qmp(), fault.settings["device"], up=True)

    async def _resume(self, machine: Machine, _: FaultRecord) -> None:
        if machine.state is State.PAUSED:
            await machine.resume()

    async def _mend_disk(self, machine: Machine, fault: FaultRecord) -> None:
        async with machine.operation("having its disk mended", *_ANY):
            qmp, own = machine.qmp(), fault.settings
            await disk.take_off(qmp, own["disk"], own["node"], own["top"])
            stopped = (await qmp.query("query-status")).get("status") == "io-error"
        if stopped and machine.state is State.PAUSED:
            await machine.resume()  # the failed requests are tried again
        machine.chains.look()

    async def _set_right(self, machine: Machine, fault: FaultRecord) -> None:
        before = machine.record.clock_fault
        machine.change(clock_fault=None)
        try:
            await clock.apply_clock(machine)
            if before is not None and before.drift_ppm:
                await clock.set_drift(machine, 0)
            await clock.start_synchronization(machine, fault.settings.get("stopped", []))
        except BoughError:
            machine.change(clock_fault=before)
            raise

    def _follow_clock(self, fault: FaultRecord) -> None:
        for machine in map(self._inventory.get, fault.machines):
            if machine is not None:
                machine.own(self._keep_wrong(machine, fault), "keep its clock wrong")

    async def _keep_wrong(self, machine: Machine, fault: FaultRecord) -> None:
        """Set the clock wrong again after each boot of the guest."""
        boot = machine.boot_id
        while machine.pid == fault.pid and fault.id in machine.faults.found:
            await asyncio.sleep(_LOOK_S)
            if machine.boot_id in (boot, None) or fault.id not in machine.faults.found:
                continue
            boot = machine.boot_id
            with contextlib.suppress(BoughError):
                await clock.stop_synchronization(machine)
                await _apply(machine)

    def _follow_pressure(self, fault: FaultRecord) -> None:
        for machine in map(self._inventory.get, fault.machines):
            if machine is not None:
                machine.own(self._keep_pressed(machine, fault), "keep it under pressure")

    async def _keep_pressed(self, machine: Machine, fault: FaultRecord) -> None:
        """Press again after each boot of the guest. A guest that refuses has the fault no longer."""
        boot = machine.boot_id
        while machine.pid == fault.pid and fault.id in machine.faults.found:
            await asyncio.sleep(_LOOK_S)
            now = machine.boot_id
            if now in (boot, None) or fault.id not in machine.faults.found:
                continue
            try:
                await self._faults.make_again(fault, lambda: _press(machine, fault))
                boot = now
            except GuestRefused as error:
                await self._faults.heal(fault, f"the guest has rebooted: {error.message}")
            except BoughError:
                continue  # the agent does not answer yet

    async def _relieve(self, machine: Machine, fault: FaultRecord) -> None:
        own = fault.settings
        if "loops" in own:
            await pressure.end_loops(machine, fault.id)
        elif "memory" in own:
            await pressure.free_memory(machine, fault.id)
        else:
            await pressure.free_file_system(machine, fault.id, own["full"])

    # -- help ---------------------------------------------------------------------------------------

    def _new(
        self, machine: Machine, kind: str, summary: str, held: bool, *, seed: int | None = None
    ) -> FaultRecord:
        return FaultRecord(
            id=new_fault_id(),
            kind=kind,
            summary=summary,
            machines=[machine.id],
            pid=machine.pid,
            held=held,
            seed=seed,
        )

    @staticmethod
    def _check(machine: Machine, *states: State) -> None:
        if machine.state not in states:
            raise machine.wrong_state("a fault", *states)


async def _press(machine: Machine, fault: FaultRecord) -> None:
    """Put a guest under pressure. A repeated call changes nothing. Raises GuestRefused, AgentUnavailable."""
    own = fault.settings
    if "loops" in own:
        await pressure.burn_processors(machine, fault.id, own["loops"])
    elif "memory" in own:
        await pressure.use_memory(machine, fault.id, own["memory"])
    else:
        await pressure.fill_file_system(machine, fault.id, own["full"])


async def _apply(machine: Machine) -> None:
    wrong = machine.record.clock_fault
    if wrong is not None and wrong.drift_ppm:
        await clock.set_drift(machine, wrong.drift_ppm)
    await clock.apply_clock(machine)


def _taken(fault: FaultRecord, problem: str) -> Conflict:
    return Conflict(f"{problem} ({fault.summary})", hint=f"bough fault heal {fault.id}", fault=fault.id)


def _render_clock(name: str, jump_s: float, drift_ppm: float) -> str:
    told = []
    if jump_s:
        told.append(f"{format_duration(abs(jump_s))} {'ahead' if jump_s > 0 else 'behind'}")
    if drift_ppm:
        told.append(f"{abs(drift_ppm):g} ppm too {'fast' if drift_ppm > 0 else 'slow'}")
    return f"clock of {name} {', '.join(told)}"
