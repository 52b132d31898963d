"""Start machines with `autostart` when the service starts.

A machine stays off if it was stopped, or powered itself off, since the host booted. The reason: any command
may start a service, many times a day.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from bough.errors import BoughError
from bough.machines.events import Events
from bough.machines.machine import Machine
from bough.machines.state import State
from bough.qemu.pid import read_boot_id

log = logging.getLogger("bough.machines")

#: Number of parallel starts. A booting guest uses a core, so more starts would slow down all guests.
AT_ONCE = 2


async def start_machines(machines: Sequence[Machine], events: Events) -> None:
    """Start the machines with autostart, in order. A failed start does not prevent the others."""
    turn = asyncio.Semaphore(AT_ONCE)
    boot = read_boot_id()

    async def start(machine: Machine) -> None:
        async with turn:
            if not _is_wanted(machine, boot):
                return
            try:
                await machine.start()
            except (BoughError, OSError) as error:
                log.error("autostart of machine %s failed: %s", machine.name, error)
                events.emit("autostart-failed", machine=machine.id, name=machine.name, detail=str(error))

    await asyncio.gather(*(start(machine) for machine in machines if _is_wanted(machine, boot)))


def _is_wanted(machine: Machine, boot: str) -> bool:
    record = machine.record
    rests = record.state in (State.STOPPED, State.FAILED)
    return record.spec.autostart and rests and record.stopped_in_boot != boot
