"""The uplink processes of machines that reach the outside through a network.

Each of these machines has a process of its own (see networks/uplink_filter.py), connected to the machine's
port at the switch. The process outlives the service, and ends when the switch closes the connection: because
the machine has stopped, or the switch has ended.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from bough.errors import BoughError, HostLacks
from bough.networks.switch_control import hand_over
from bough.networks.uplink import NETWORK_LABEL, begin_uplink
from bough.qemu.cgroup import join_groups
from bough.qemu.pid import Pid
from bough.tasks import Tasks, finish

log = logging.getLogger("bough.hypervisor")

#: Pauses before the next start of a process that has ended.
_FIRST_PAUSE_S = 0.1
_MOST_PAUSE_S = 5.0


@dataclass(frozen=True)
class WayOut:
    """The settings of a machine's uplink process.

    Attributes:
        uid: user of the process if the service is root, otherwise None.
        groups: the machine's control groups, which exist while QEMU runs.
        addresses: see uplink_filter.CARD.
    """

    machine_id: str
    uid: int | None
    groups: tuple[str, ...]
    addresses: tuple[str, ...]


@dataclass(frozen=True)
class _Process:
    """A running process. `way` is None for a process that an earlier service started."""

    pid: Pid
    way: WayOut | None


class NetworkUplinks:
    """The uplink processes of one network, each started again when it ends.

    Args:
        control_socket: of the network's switch.
        wanted: returns port -> settings for the machines that run now.
    """

    def __init__(self, control_socket: Path, wanted: Callable[[], Mapping[str, WayOut]]) -> None:
        self._control_socket = control_socket
        self._wanted = wanted
        self._processes: dict[str, _Process] = {}
        self._starting = asyncio.Lock()
        self._tasks = Tasks()

    def adopt(self, present: Mapping[str, int]) -> None:
        """Begin with the processes that the switch is connected to: port -> process id."""
        found = {port: Pid.of(number) for port, number in present.items()}
        self._processes = {port: _Process(pid, None) for port, pid in found.items() if pid is not None}
        for port, process in self._processes.items():
            self._watch(port, process)

    async def follow(self) -> None:
        """Start the missing processes. A process that cannot be started is tried again later."""
        wanted = self._wanted()
        self._processes = {port: one for port, one in self._processes.items() if port in wanted}
        for port, way in wanted.items():
            process = self._processes.get(port)
            if process is None or process.way not in (None, way):
                await self._try(port)
            else:
                _join(process.pid, way)

    async def let_go(self) -> None:
        """Leave the processes to the switch and the next service."""
        await self._tasks.end()

    async def _try(self, port: str) -> None:
        """Start the process of a port, or begin to try it again and again."""
        before = self._processes.get(port)
        try:
            await self._start(port, before)
        except (BoughError, OSError) as error:
            log.error("the uplink of port %s cannot be started: %s", port, error)
            self._tasks.begin(self._start_again(port, before), f"start the uplink of {port}")

    async def _start(self, port: str, before: _Process | None) -> None:
        """Start the process of a port, unless another one has replaced `before` meanwhile.

        Raises:
            HostLacks, SwitchLost, Conflict: no process was left behind.
        """
        async with self._starting:
            way = self._wanted().get(port)
            if way is None or self._processes.get(port) is not before:
                return
            process = await _begin(self._control_socket, port, way)
            self._processes[port] = process
        self._watch(port, process)

    def _watch(self, port: str, process: _Process) -> None:
        self._tasks.begin(self._replace(port, process), f"watch the uplink of {port}")

    async def _replace(self, port: str, process: _Process) -> None:
        await process.pid.wait()
        await self._start_again(port, process)

    async def _start_again(self, port: str, before: _Process | None) -> None:
        pause_s = _FIRST_PAUSE_S
        while port in self._wanted() and self._processes.get(port) is before:
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, _MOST_PAUSE_S)
            try:
                return await self._start(port, before)
            except (BoughError, OSError) as error:  # the switch is being started again, for example
                log.error("the uplink of port %s cannot be started: %s", port, error)


async def _begin(control_socket: Path, port: str, way: WayOut) -> _Process:
    asked = begin_uplink(
        machine_id=way.machine_id, uid=way.uid, groups=[], label=NETWORK_LABEL, addresses=way.addresses
    )
    with asked.end:
        pid = Pid.of(asked.started())
        if pid is None:
            raise HostLacks("the uplink has ended at once")
        _join(pid, way)
        # Closed by the end of the block, while a thread still sends it, another descriptor could be sent.
        await finish(asyncio.to_thread(hand_over, control_socket, port, pid.number, asked.end))
    return _Process(pid, way)


def _join(pid: Pid, way: WayOut) -> None:
    """Move a process, and passt below it, into the machine's groups. The groups are made after the port."""
    for one in (pid, *pid.children()):
        join_groups(one.number, way.groups)
