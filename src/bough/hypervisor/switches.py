"""Switch processes of a home: started in a jail, adopted by a later service, started again, ended.

A switch runs while a machine on its network runs. The switch is not a child in life of the service: the next
service finds the switch by the control socket. The file `process` identifies an unresponsive switch:

    <boot id> <pid> <start time>
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import logging
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

from bough.errors import Conflict, HostLacks, SwitchLost
from bough.hypervisor.network_uplinks import NetworkUplinks, WayOut
from bough.networks.names import domains_of
from bough.networks.record import NetworkRecord
from bough.networks.store import make_switch_directory
from bough.networks.switch.program import RUN
from bough.networks.switch_control import SwitchControl
from bough.paths import NetworkPaths
from bough.qemu.jail import Jail, Sight, render_jail
from bough.qemu.pid import Pid, read_boot_id
from bough.qemu.sockets import listen
from bough.qemu.syscalls import open_filter
from bough.storage import read_tail
from bough.tasks import Tasks, finish

log = logging.getLogger("bough.hypervisor")

_PACKAGES = ("bough", "dnslib", "dpkt")
_START_S = 30.0
_END_S = 5.0
#: Pauses before the restart of a crashed switch.
_FIRST_PAUSE_S = 0.1
_MOST_PAUSE_S = 5.0
_BACKLOG = 16
_HOLD_MOST_S = 10.0
#: Port -> the switch's settings for the machine at the port (see switch/settings.py).
Members = Mapping[str, dict[str, Any]]


class Switch:
    """The switch of one network.

    Attributes:
        uid: user and group of the switch under a root service, otherwise None.

    Args:
        members: returns the machines that belong on it now.
        faults: returns the present faults of its links (see switch/link_fault.py).
        ways: returns the ports whose machines reach the outside through the network, with their uplinks.
    """

    def __init__(
        self,
        record: NetworkRecord,
        paths: NetworkPaths,
        jail: Jail,
        uid: int | None,
        members: Callable[[], Members],
        faults: Callable[[], list[dict[str, Any]]] = list,
        ways: Callable[[], Mapping[str, WayOut]] = dict,
    ) -> None:
        self._record = record
        self._paths = paths
        self._jail = jail
        self.uid = uid
        self._members = members
        self._faults = faults
        #: The faults that the switch knows; None: set by an earlier service.
        self._told_faults: list[dict[str, Any]] | None = None
        self._control: SwitchControl | None = None
        self._process: subprocess.Popen[bytes] | None = None
        #: The settings sent to the switch for each port; None: sent by an earlier service.
        self._told: dict[str, dict[str, Any] | None] = {}
        self._uplinks = NetworkUplinks(paths.control_socket, ways)
        self._changing = asyncio.Lock()
        self._tasks = Tasks()

    @property
    def runs(self) -> bool:
        return self._control is not None

    async def sync(self) -> None:
        """Make the switch carry frames for the current machines of the network only.

        The switch starts for the first machine and ends with the last machine.

        Raises:
            Conflict: two machines have one address.
            HostLacks: the switch cannot be started.
        """
        async with self._changing:
            if not self._members():
                await self._end()
            elif self._control is None:
                await self._adopt_or_start()
            else:
                try:
                    await self._tell(self._control)
                except SwitchLost:
                    await self._control.close()
                    self._control = None
                    await self._adopt_or_start()

    async def counters(self) -> list[dict[str, Any]]:
        if self._control is None:
            return []
        with contextlib.suppress(SwitchLost):
            return list((await self._control.ask("counters"))["ports"])
        return []

    @contextlib.asynccontextmanager
    async def holding(self) -> AsyncIterator[None]:
        """Have the switch hold all frames in the block, at most for 10 s. Frames wait in the sockets of the
        machines. The end of the service releases the frames.

        A switch that has ended holds nothing. Nor does a switch of an earlier version.
        """
        control = self._control
        try:
            if control is not None:
                with contextlib.suppress(SwitchLost, Conflict):
                    await control.ask("hold", most_s=_HOLD_MOST_S)
            yield
        finally:
            if control is not None:
                with contextlib.suppress(SwitchLost, Conflict):
                    await finish(control.ask("release"))

    async def let_go(self) -> None:
        """Leave the switch to the next service."""
        await self._tasks.end()
        await self._uplinks.let_go()
        if self._control is not None:
            await self._control.close()
            self._control = None

    # -- the process ------------------------------------------------------------------------------

    async def _adopt_or_start(self) -> SwitchControl:
        """Return the connection to a switch that knows all machines."""
        try:
            control = await SwitchControl.connect(self._paths.control_socket)
        except SwitchLost:
            await self._end_old(grace_s=0)
            control = await self._start()
        try:
            present = (await control.ask("counters"))["ports"]
            self._told = {one["port"]: None for one in present}
            self._told_faults = None
            self._uplinks.adopt({one["port"]: one["uplink"] for one in present if one.get("uplink")})
            await self._tell(control)
        except BaseException:
            await control.close()
            raise
        self._control = control
        self._tasks.begin(self._watch(control), f"watch the switch of {self._record.name}")
        return control

    async def _tell(self, control: SwitchControl) -> None:
        """Attach the machines that belong on the network, and detach all others."""
        told = self._told
        members = dict(self._members())
        for port in [port for port in told if port not in members]:
            await control.ask("detach", port=port)
            del told[port]
        for port, member in members.items():
            if told.get(port) != member:
                await control.ask("attach", member=member)
                told[port] = member
        await self._tell_faults(control)
        await self._uplinks.follow()

    async def _tell_faults(self, control: SwitchControl) -> None:
        faults = self._faults()
        if faults == self._told_faults:
            return
        try:
            await control.ask("faults", set=faults)
        except Conflict:  # the switch of an earlier version, which knows no faults
            if faults:
                raise
        self._told_faults = faults

    async def _start(self) -> SwitchControl:
        try:
            self._process = await asyncio.to_thread(self._spawn)
        except OSError as error:
            raise HostLacks(
                f"the switch of network '{self._record.name}' cannot be started: {error}"
            ) from error
        try:
            async with asyncio.timeout(_START_S):
                return await SwitchControl.connect(self._paths.control_socket)
        except (SwitchLost, TimeoutError) as error:
            await self._end_old(grace_s=0)
            told = read_tail(self._paths.log, 2000).strip().rpartition("\n")[2]
            raise HostLacks(
                f"the switch of network '{self._record.name}' does not start: {told or error}"
            ) from error

    def _spawn(self) -> subprocess.Popen[bytes]:
        paths = self._paths
        make_switch_directory(paths.runtime)
        paths.control_socket.unlink(missing_ok=True)
        modules = [str(_package(name)) for name in _PACKAGES]
        program = os.path.realpath(sys.executable)
        sight = Sight(program, writable=(str(paths.runtime),), read_only=tuple(modules))
        with contextlib.ExitStack() as passed:
            control = passed.enter_context(listen(paths.control_socket, backlog=_BACKLOG)).fileno()
            jail = self._jail.bwrap is not None
            outer = open_filter() if jail and self._jail.system_calls else None
            if outer is not None:
                passed.callback(os.close, outer)
            errors = passed.enter_context(paths.log.open("wb"))
            own_uid = [] if jail or self.uid is None else ["--uid", str(self.uid)]
            words = [program, "-I", "-S", "-c", RUN, ":".join(str(Path(path).parent) for path in modules)]
            words += ["--control-fd", str(control), "--settings", json.dumps(self._settings()), *own_uid]
            words.append(str(paths.runtime))
            if jail:
                words = render_jail(self._jail, sight, words, uid=self.uid, filter_descriptor=outer)
            process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                cwd="/",
                env={"PATH": os.defpath, "LC_ALL": "C.UTF-8"},
                pass_fds=[control, *([] if outer is None else [outer])],
                start_new_session=True,
            )
        self._note(process.pid)
        return process

    def _settings(self) -> dict[str, Any]:
        record, own = self._record, self._record.addresses
        return {
            "network": record.name,
            "mac": record.switch_mac,
            "address": f"{own.switch_ipv4}/{record.subnet.prefixlen}",
            "address6": f"{own.switch_ipv6}/{record.prefix6.prefixlen}",
            "mtu": record.mtu,
            "domains": list(domains_of(record.name, domain=record.domain)),
        }

    def _note(self, number: int) -> None:
        pid = Pid.of(number)
        if pid is not None:
            self._paths.process.write_text(f"{read_boot_id()} {pid.number} {pid.start}\n")

    async def _end(self) -> None:
        control, self._control = self._control, None
        await self._tasks.end()
        await self._uplinks.let_go()
        if control is not None:
            with contextlib.suppress(SwitchLost):
                await control.ask("end")
            await control.close()
        await self._end_old(grace_s=0 if control is None else _END_S)

    async def _end_old(self, *, grace_s: float) -> None:
        """End the process that the file identifies, and remove the names of a switch."""
        pid = _read_process(self._paths.process)
        if pid is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace_s):
                    await pid.wait()
            # bubblewrap does not kill its child: the innermost process first.
            pid.innermost().kill()
            pid.kill()
            await pid.wait()
        if self._process is not None:
            await asyncio.to_thread(self._process.wait)
            self._process = None
        for path in (self._paths.control_socket, self._paths.process):
            path.unlink(missing_ok=True)

    async def _watch(self, control: SwitchControl) -> None:
        """Start the switch again when the switch ends by itself."""
        await control.wait_closed()
        pause_s = _FIRST_PAUSE_S
        while True:
            told = read_tail(self._paths.log, 2000).strip().rpartition("\n")[2]
            log.error("the switch of network %s has ended%s", self._record.name, f": {told}" if told else "")
            await asyncio.sleep(pause_s)
            async with self._changing:
                if self._control is not control:
                    return
                self._control = None
                try:
                    if self._members():
                        await self._adopt_or_start()
                    return
                except Exception as error:  # the host may be out of memory: try again
                    self._control = control
                    log.error("the switch of network %s cannot be started: %s", self._record.name, error)
            pause_s = min(pause_s * 2, _MOST_PAUSE_S)


def _read_process(path: Path) -> Pid | None:
    """Return the living process of the file; None: the process has ended, or the host has been
    booted since.
    """
    try:
        boot, number, start = path.read_text().split()
        pid = Pid(int(number), int(start))
    except (OSError, ValueError):
        return None
    return pid if boot == read_boot_id() and pid.is_alive() else None


def _package(name: str) -> Path:
    """Return the directory of a Python package. Raises HostLacks."""
    found = importlib.util.find_spec(name)
    if found is None or found.origin is None:
        raise HostLacks(f"the Python package {name} is not installed", hint=f"pip install {name}")
    return Path(found.origin).parent
