"""Waiting machines: standby machines, and forks loaded in advance."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from bough.errors import BoughError
from bough.forks.fork_kind import ForkKind
from bough.forks.loaded import LoadedForks
from bough.forks.standby import StandbyMachines
from bough.hypervisor.lifetimes import Lifetimes
from bough.hypervisor.names import Names
from bough.machines.events import Events
from bough.machines.machine import Machine
from bough.storage import sync_directory, sync_file

log = logging.getLogger("bough.hypervisor")


class WaitingMachines:
    """Hands waiting machines to users. None means: no machine fits, make a machine."""

    def __init__(
        self,
        standby: StandbyMachines,
        loaded: LoadedForks,
        names: Names,
        lifetimes: Lifetimes,
        events: Events,
    ) -> None:
        self._standby = standby
        self._loaded = loaded
        self._names = names
        self._lifetimes = lifetimes
        self._events = events

    async def take_standby(
        self, fits: Callable[[Machine], bool], *, name: str | None, ephemeral: bool
    ) -> Machine | None:
        """Return a fitting standby machine, now running.

        Raises:
            NameTaken
        """
        with contextlib.ExitStack() as stack:
            if name is not None:
                stack.enter_context(self._names.reserve(name))
            machine = self._standby.take(fits)
            if machine is None:
                return None
            machine.record.standby = False  # its name is not given away any more
            return await self._wake(machine, machine.standby.take(name=name, ephemeral=ephemeral), ephemeral)

    async def take_loaded(
        self, kind: ForkKind, name: str | None, stem: str, *, ephemeral: bool
    ) -> Machine | None:
        """Return a fork loaded in advance, now running.

        Args:
            stem: start of the generated name.

        Raises:
            NameTaken
        """
        with self._names.reserve(name or self._names.free_name(stem)) as reserved:
            fork = self._loaded.take(kind)
            if fork is None:
                return None
            waking = fork.machine.go_on(fork.saved, name=reserved, ephemeral=ephemeral)
            return await self._wake(fork.machine, waking, ephemeral)

    async def _wake(
        self, machine: Machine, waking: Coroutine[Any, Any, None], ephemeral: bool
    ) -> Machine | None:
        try:
            await waking
        except BoughError as error:
            log.warning("a machine that waited could not be used: %s", error)
            self._lifetimes.discard_unclaimed(machine)
            return None
        except BaseException:
            self._lifetimes.discard_unclaimed(machine)
            raise
        self._lifetimes.unpin(machine)
        if not ephemeral:
            await asyncio.to_thread(_sync_machine, machine)
        forked = machine.record.forked_from
        kind, detail = ("created", "") if forked is None else ("forked", f"from {forked}")
        self._events.emit(kind, machine=machine.id, name=machine.name, detail=detail)
        return machine


def _sync_machine(machine: Machine) -> None:
    """Make a machine durable that was ephemeral."""
    for path in (*machine.paths.disks.iterdir(), machine.paths.record):
        sync_file(path)
    for directory in (machine.paths.disks, machine.paths.root, machine.paths.root.parent):
        sync_directory(directory)
