"""Make a process image of a pre-warmed fork: steps 3 to 5 of a pre-warm (see rewind.py)."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from bough.errors import MachineFailed
from bough.forks.process_image.capture import capture
from bough.forks.process_image.captured import CapturedProcess
from bough.forks.process_image.identifiers import Identifiers, fit_of, identifiers_of
from bough.forks.process_image.image import ProcessImage
from bough.forks.process_image.rewind import Rewind, rewind_fork
from bough.machines.machine import Machine
from bough.machines.record import MachineDisk, MachineRecord
from bough.machines.state import State
from bough.paths import MachinePaths
from bough.qemu.plan import Plan
from bough.qemu.ram import Template
from bough.tasks import finish

_ATTEMPTS = 20
_POLL_S = 0.01

Planner = Callable[[MachineRecord, MachinePaths], Awaitable[Plan]]


async def capture_fork(
    machine: Machine, rewind: Rewind, overlays: list[MachineDisk], memory: Template, planner: Planner
) -> ProcessImage:
    """Rewind a fork to its snapshot, and capture the process. Delete the machine afterwards, even after an
    error.

    Args:
        overlays: empty overlays, already among the machine's disks.
        memory: of the snapshot.

    Raises BoughError, OSError, TimeoutError.
    """
    async with machine.operation("being captured", State.RUNNING):
        qmp, process, hardware = machine.qmp(), machine.vm.require_process(), machine.record.hardware
        await qmp.execute("stop")
        port_closed = await machine.vm.release_guest()
        places = await rewind_fork(
            rewind,
            qmp,
            process.pid,
            machine.paths,
            overlays,
            memory,
            arch=hardware.arch,
            vmgenid=hardware.vmgenid,
            uid=hardware.uid,
            port_closed=port_closed,
        )
        machine.change(disks=overlays)
        plan = replace(await planner(machine.record, machine.paths), from_template=True)
        fit = fit_of(plan)
        if fit is None:
            raise MachineFailed("its process cannot be captured as a process image")
        await qmp.close()
        captured = await capture_process(process.pid, identifiers_of(plan), fit, process.given, places)
        return ProcessImage(captured)


async def capture_process(
    pid: int,
    identifiers: Identifiers,
    fit: tuple[str, ...],
    given: Mapping[str, int],
    places: dict[str, tuple[int, ...]],
) -> CapturedProcess:
    """Do step 5 except the end of the process. No client may be connected.

    Raises MachineFailed, HostLacks.
    """
    for attempt in range(_ATTEMPTS):
        # A new thread for each attempt: at a thread's end the kernel releases all processes that the thread
        # traces.
        tracer = ThreadPoolExecutor(1, "tracer")
        try:
            work = functools.partial(capture, pid, identifiers, fit, given, places)
            # Also when cancelled: a traced process must be released before it is killed.
            return await finish(asyncio.get_running_loop().run_in_executor(tracer, work))
        except MachineFailed:  # QEMU is still handling the end of a connection
            if attempt == _ATTEMPTS - 1:
                raise
        finally:
            tracer.shutdown(wait=False)
        await asyncio.sleep(_POLL_S * (attempt + 1))
    raise AssertionError
