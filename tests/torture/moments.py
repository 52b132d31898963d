"""Kill something at a random moment of something, then look whether anything is lost.

A moment: an operation begins in a thread, after a random time the service, a QEMU or both get SIGKILL, a new
client comes, and everything must be as it was before the operation or as it should be after it.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import bough
from bough.client.info import MachineInfo
from bough.errors import BoughError
from bough.paths import Home
from tests.leftovers import find_leftovers, wait_nothing_left

IMAGE = "debian:12"
SMALL: dict[str, Any] = {"memory": "128MiB", "vcpus": 1, "uplink": False}
MOST_MACHINES = 5
VICTIMS = ("service", "qemu", "both")
SETTLED = {"stopped", "running", "paused", "failed"}
SETTLE_TIMEOUT_S = 30.0
#: Killed before QEMU was there, a machine is failed with that as its cause, or where it was.
ALLOWED = {
    "start": ("running", "failed", "stopped"),
    "restart": ("running", "failed", "stopped"),
    "stop": ("stopped",),
    "pause": ("paused",),
    "resume": ("running",),
}
#: Acknowledged, and its QEMU not killed: it is so.
WANTED = {"start": "running", "restart": "running", "stop": "stopped", "pause": "paused", "resume": "running"}

Known = dict[str, MachineInfo]


@dataclass
class Report:
    moments: Counter[str] = field(default_factory=Counter)
    losses: list[str] = field(default_factory=list)
    leaks: int = 0

    def __str__(self) -> str:
        rows = [f"{count:5}  {what}" for what, count in sorted(self.moments.items())]
        total = f"{self.moments.total()} moments of death, "
        total += f"{self.leaks} disks with clusters that nothing uses (harmless), {len(self.losses)} losses"
        return "\n".join([*rows, total, *self.losses])


@dataclass
class Operation:
    """What is done to `target` (None: a new machine); `allowed` are the states it may be in afterwards."""

    kind: str
    target: str | None
    run: Callable[[bough.Hypervisor], object]
    typical_s: float
    allowed: tuple[str, ...] = ()
    #: It runs in the end when nothing was killed but the service.
    wanted: str | None = None
    new_name: str | None = None
    acknowledged: bool = False
    error: BaseException | None = None


class Torture:
    def __init__(self, home: Home, seed: int, *, say: Callable[[str], None] = lambda _: None) -> None:
        self.home = home
        self.random = random.Random(seed)
        self.report = Report()
        self._say = say
        self._serial = 0

    # -- one moment -----------------------------------------------------------------------------

    def moment(self, kind: str | None = None, victim: str | None = None) -> None:
        client = bough.connect(self.home.root)
        before = {info.id: info for info in (machine.info() for machine in client.machines())}
        operation = self._choose(before, kind)
        victim = victim or self.random.choice(VICTIMS)
        delay_s = self.random.uniform(0, operation.typical_s * 1.3)
        what = f"{operation.kind}, {victim} killed"
        self._say(f"{what} after {delay_s * 1000:.0f} ms")
        thread = threading.Thread(target=self._perform, args=(operation,), daemon=True)
        thread.start()
        time.sleep(delay_s)
        killed = self._kill(victim, operation, before)
        thread.join(90)
        self.report.moments[what] += 1
        client = bough.connect(self.home.root)
        where = f"{what} after {delay_s * 1000:.0f} ms (operation: {operation.error or 'done'})"
        if thread.is_alive():
            self._lose(where, "the operation did not end")
        try:
            self._check(client, before, operation, killed, where)
        except BoughError as error:
            self._lose(where, f"the service says {error.message}")

    def _perform(self, operation: Operation) -> None:
        try:
            operation.run(bough.connect(self.home.root))
            operation.acknowledged = True
        except BoughError as error:
            operation.error = error
        except OSError as error:
            operation.error = error

    def _kill(self, victim: str, operation: Operation, before: Known) -> set[str]:
        """Ids of machines whose QEMU was killed."""
        killed = set()
        if victim in ("service", "both"):
            kill(service_pid(self.home))
        if victim in ("qemu", "both"):
            running = qemus(self.home)
            own = operation.target if operation.target in running else None
            chosen = own or (self.random.choice(sorted(running)) if running else None)
            if chosen is not None and kill(running[chosen]):
                killed.add(chosen)
        return killed

    # -- what must be true ----------------------------------------------------------------------

    def _check(
        self, client: bough.Hypervisor, before: Known, operation: Operation, killed: set[str], where: str
    ) -> None:
        after = self._settle(client, where)
        for machine_id, was in before.items():
            now = after.get(machine_id)
            if now is None:
                if operation.kind != "delete" or operation.target != machine_id:
                    self._lose(where, f"machine {was.name} is gone")
                continue
            mine = operation.target == machine_id
            names = {was.name, operation.new_name} if mine and operation.new_name else {was.name}
            if now.name not in names:
                self._lose(where, f"{was.name} is called {now.name}")
            states = {was.state, *operation.allowed} if mine else {was.state}
            if machine_id in killed:
                states |= {"failed"}
                if was.state == "failed" and not mine:
                    self._lose(where, "a failed machine had a QEMU")
            if now.state not in states:
                self._lose(where, f"{was.name} was {was.state} and is {now.state}: {now.failure}")
            if now.state == "failed" and not (now.failure and now.failure.cause):
                self._lose(where, f"{was.name} failed without a cause")
        self._check_acknowledged(before, after, operation, killed, where)
        self._check_store(client, where)

    def _check_acknowledged(
        self, before: Known, after: Known, operation: Operation, killed: set[str], where: str
    ) -> None:
        new = [after[machine_id] for machine_id in after.keys() - before.keys()]
        if len(new) > (operation.kind == "create"):
            self._lose(where, f"machines out of nothing: {[info.name for info in new]}")
        if any(info.name != operation.new_name or info.state != "stopped" for info in new):
            self._lose(where, f"a new machine is not what was asked for: {new[0].name}, {new[0].state}")
        if not operation.acknowledged:
            return
        now = after.get(operation.target or "")
        lost = {
            "create": not new,
            "delete": now is not None,
            "rename": now is None or now.name != operation.new_name,
        }.get(operation.kind, False)
        if operation.wanted and operation.target not in killed:
            lost = now is None or now.state != operation.wanted
        if lost:
            self._lose(where, f"the {operation.kind} was acknowledged and is undone")

    def _settle(self, client: bough.Hypervisor, where: str) -> Known:
        deadline = time.monotonic() + SETTLE_TIMEOUT_S
        while True:
            infos = [machine.info() for machine in client.machines()]
            states = {info.name: info.state for info in infos}
            # A QEMU that was killed this very moment is still being noticed.
            running = qemus(self.home)
            noticed = all((info.state in ("running", "paused")) == (info.id in running) for info in infos)
            if set(states.values()) <= SETTLED and noticed:
                break
            if time.monotonic() > deadline:
                self._lose(where, f"not settled after {SETTLE_TIMEOUT_S:g} s: {states}, QEMUs {running}")
                break
            time.sleep(0.05)
        return {info.id: info for info in infos}

    def _check_store(self, client: bough.Hypervisor, where: str) -> None:
        left = wait_nothing_left(lambda: find_leftovers(self.home))
        if left:
            self._lose(where, str(left))
        found = client.doctor_store()
        for finding in found["findings"]:
            if finding["kind"] == "disk-leaks":
                self.report.leaks += 1
            elif not finding["harmless"]:
                self._lose(where, f"doctor --store: {finding['kind']}: {finding['problem']}")
        if self.report.leaks:
            client.doctor_store(repair=True)

    def _lose(self, where: str, what: str) -> None:
        self._say(f"LOST: {where}: {what}")
        self.report.losses.append(f"{where}: {what}")

    # -- operations -----------------------------------------------------------------------------

    def _choose(self, before: Known, kind: str | None) -> Operation:
        by_state: dict[str, list[str]] = {}
        for info in before.values():
            by_state.setdefault(info.state, []).append(info.id)
        resting = by_state.get("stopped", []) + by_state.get("failed", [])
        running = by_state.get("running", [])
        possible = {
            "create": [None] if len(before) < MOST_MACHINES else [],
            "start": resting if len(running) < 2 else [],
            "stop": running,
            "pause": running,
            "resume": by_state.get("paused", []),
            "rename": list(before),
            "delete": resting if len(before) > 1 else [],
            "restart": running,
        }
        kinds = [each for each, targets in possible.items() if targets and kind in (None, each)]
        chosen = self.random.choice(kinds or ["create"])
        return self._operation(chosen, self.random.choice(possible[chosen] or [None]))

    def _operation(self, kind: str, target: str | None) -> Operation:
        self._serial += 1
        name = f"m{self._serial}-{self.random.randrange(10**6)}"
        reference = target or ""
        works: dict[str, tuple[Callable[[bough.Hypervisor], object], float]] = {
            "create": (lambda hv: hv.create(IMAGE, name=name, **SMALL), 0.12),
            "start": (lambda hv: hv.machine(reference).start(wait=False), 0.35),
            "stop": (lambda hv: hv.machine(reference).stop(force=True), 0.1),
            "restart": (lambda hv: hv.machine(reference).restart(deadline=0, wait=False), 0.5),
            "pause": (lambda hv: hv.machine(reference).pause(), 0.01),
            "resume": (lambda hv: hv.machine(reference).resume(), 0.01),
            "rename": (lambda hv: hv.machine(reference).rename(name), 0.015),
            "delete": (lambda hv: hv.machine(reference).delete(), 0.03),
        }
        work, typical_s = works[kind]
        new_name = name if kind in ("create", "rename") else None
        return Operation(kind, target, work, typical_s, ALLOWED.get(kind, ()), WANTED.get(kind), new_name)


# -- processes --------------------------------------------------------------------------------------


def service_pid(home: Home) -> int:
    try:
        return int(home.lock.read_text())
    except (OSError, ValueError):
        return 0


def kill(pid: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        if pid > 0:
            os.kill(pid, signal.SIGKILL)
            return True
    return False


def qemus(home: Home) -> dict[str, int]:
    """Machine id -> pid of its QEMU, for those of this home that live."""
    found = {}
    mark = f"{home.machines}/".encode()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError, ValueError):
            arguments = (process / "cmdline").read_bytes()
            name = (process / "comm").read_text()
            if mark in arguments and name.startswith("qemu-system") and _lives(process):
                found[arguments.split(mark, 1)[1][:12].decode()] = int(process.name)
    return found


def _lives(process: Path) -> bool:
    return (process / "stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
