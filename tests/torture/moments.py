"""Kill a process at a random moment of an operation, then check whether anything is lost.

One moment: an operation begins in a thread. After a random time the service, a QEMU or both get SIGKILL. A
new client connects. Everything must be as before the operation, or as expected after it.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import bough
from bough.contract.answers import MachineInfo
from bough.errors import BoughError
from bough.paths import Home
from tests.leftovers import find_leftovers, wait_nothing_left
from tests.torture.files import PLACE, PREPARE, WRITE, Files, compare, read_files
from tests.torture.operations import (
    ASK_PROCESS,
    IMAGE,
    KINDS,
    MOST_MACHINES,
    SEED,
    WORKER,
    Operation,
    Scene,
)
from tests.torture.processes import kill, qemus, service_pid
from tests.waiting import wait_until

VICTIMS = ("service", "qemu", "both")
SETTLED = {"stopped", "running", "paused", "suspended", "failed"}
#: The next service completes a stop that a killed service had begun, and asks the guest first.
SETTLE_TIMEOUT_S = 100.0
OPERATION_TIMEOUT_S = 90.0
#: Number of moments between two forks of a snapshot, and between two `doctor --store`, which reads whole
#: images:
#: a finding stays until then.
FORK_EVERY = 4
STORE_EVERY = 4
_LIST_FILES = f'mountpoint -q {PLACE} && cd {PLACE} && grep -r "" . 2>/dev/null; true'


@dataclass
class Report:
    moments: Counter[str] = field(default_factory=Counter)
    losses: list[str] = field(default_factory=list)
    leaks: int = 0
    files: int = 0
    forks: int = 0
    imports: int = 0
    processes: int = 0

    def __str__(self) -> str:
        rows = [f"{count:5}  {what}" for what, count in sorted(self.moments.items())]
        total = f"{self.moments.total()} moments of death, {self.files} files looked for on disks, "
        total += f"{self.forks} forks of snapshots, {self.imports} bundles imported, "
        total += f"{self.processes} processes that had to go on after a suspend, "
        total += f"{self.leaks} disks with clusters that nothing uses (harmless), {len(self.losses)} losses"
        return "\n".join([*rows, total, *self.losses])


class Torture:
    def __init__(self, home: Home, seed: int, *, say: Callable[[str], None] = lambda _: None) -> None:
        self.home = home
        self.random = random.Random(seed)
        self.report = Report()
        self._say = say
        self._serial = 0
        self._files: dict[str, Files] = {}
        self._snapshot_files: dict[str, Files] = {}
        self._bundles: dict[Path, Files] = {}
        self._bundle_place = home.root.parent / "bundles"
        self._bundle_place.mkdir()
        #: Of a suspended machine: the answer that a process in it must give.
        self._words: dict[str, str] = {}
        #: Files read from the disk of a machine since its last run.
        self._looked_at: dict[str, Files] = {}

    def prepare(self) -> None:
        """Make a worker that has booted, and a snapshot of it."""
        client = bough.connect(self.home.root)
        worker = client.create(IMAGE, name="worker", **WORKER)
        worker.start()
        worker.shell(PREPARE, check=True)
        snapshot = worker.snapshot(SEED)
        self._files[worker.id] = self._snapshot_files[snapshot.id] = {}

    # -- one moment -----------------------------------------------------------------------------

    def moment(self, kind: str | None = None, victim: str | None = None) -> None:
        client = bough.connect(self.home.root)
        before = self._look(client)
        if not before.answering():
            before = self._add_worker(client, before)
        before = self._write_before(client, before)
        operation = self._choose(before, kind)
        victim = victim or self.random.choice(VICTIMS)
        delay_s = self.random.uniform(0, operation.kind.typical_s * 1.3)
        what = f"{operation.kind.name}, {victim} killed"
        self._say(f"{what} after {delay_s * 1000:.0f} ms")
        thread = threading.Thread(target=self._perform, args=(operation,), daemon=True)
        thread.start()
        time.sleep(delay_s)
        killed = self._kill(victim, operation, before)
        thread.join(OPERATION_TIMEOUT_S)
        self.report.moments[what] += 1
        client = bough.connect(self.home.root)
        where = f"{what} after {delay_s * 1000:.0f} ms (operation: {operation.error or 'done'})"
        if thread.is_alive():
            self._lose(where, "the operation did not end")
        try:
            self._check(client, before, operation, killed, where)
        except BoughError as error:
            self._lose(where, f"the service says {error.message}")

    def _write_before(self, client: bough.Hypervisor, scene: Scene) -> Scene:
        """Write a file that the guest is told is on disk: most files of operations are killed before that."""
        machine_id = self.random.choice(scene.answering())
        self._serial += 1
        name = f"before-{self._serial}"
        client.machine(machine_id).exec("sh", "-c", WRITE, "sh", name, input=name, check=True)
        self._files[machine_id] = {**self._files[machine_id], name: name}
        return replace(scene, files=dict(self._files))

    def _add_worker(self, client: bough.Hypervisor, scene: Scene) -> Scene:
        """Add a machine that answers and can write files, when all earlier ones have ended."""
        for machine_id in scene.of_state("running", "paused"):
            client.machine(machine_id).stop(force=True)
        # Each machine is started at the end: more of them would take more than a minute or two.
        resting = [one for one in scene.of_state("stopped", "failed") if one in self._files]
        for machine_id in resting[: max(0, len(scene.machines) + 1 - MOST_MACHINES)]:
            client.machine(machine_id).delete()
            del self._files[machine_id]
        (seed,) = (one for one in scene.snapshots.values() if one.label == SEED)
        self._serial += 1
        worker = client.snapshot(seed.id).fork(f"worker-{self._serial}")
        self._files[worker.id] = self._snapshot_files[seed.id]
        return self._look(client)

    def _perform(self, operation: Operation) -> None:
        try:
            operation.kind.run(bough.connect(self.home.root), operation)
            operation.acknowledged = True
        except (BoughError, OSError) as error:
            operation.error = error

    def _kill(self, victim: str, operation: Operation, before: Scene) -> set[str]:
        """Kill, and return ids of machines whose QEMU was killed: the target's, a new machine's, or any."""
        killed = set()
        if victim in ("service", "both"):
            kill(service_pid(self.home))
        if victim in ("qemu", "both"):
            running = qemus(self.home)
            new = [machine for machine in running if machine not in before.machines]
            own = operation.machine if operation.machine in running and not new else None
            chosen = own or (self.random.choice(sorted(new or running)) if running else None)
            if chosen is not None and kill(pid := running[chosen]):
                killed.add(chosen)
                # A killed QEMU takes a while to end, and until then bough reports that it runs.
                wait_until(lambda: pid not in qemus(self.home).values(), what="a killed QEMU is gone")
        return killed

    def _choose(self, scene: Scene, names: str | None) -> Operation:
        possible = [
            (kind, targets)
            for kind in KINDS
            if (names is None or kind.name in names.split(",")) and (targets := kind.targets(scene))
        ]
        if not possible:  # none of the requested kinds
            return self._choose(scene, None)
        (kind, targets), *_ = self.random.choices(possible, [kind.weight for kind, _ in possible])
        self._serial += 1
        name = f"m{self._serial}-{self.random.randrange(10**6)}"
        return Operation(kind, self.random.choice(targets), name, self._bundle_place / f"{name}.bough")

    # -- what must be true ----------------------------------------------------------------------

    def _look(self, client: bough.Hypervisor) -> Scene:
        machines = {info.id: info for info in (machine.info() for machine in client.machines())}
        snapshots = {info.id: info for info in (snapshot.info() for snapshot in client.snapshots())}
        return Scene(machines, snapshots, dict(self._files), dict(self._snapshot_files), dict(self._bundles))

    def _check(
        self, client: bough.Hypervisor, before: Scene, operation: Operation, killed: set[str], where: str
    ) -> None:
        self._settle(client, where)
        after = self._look(client)
        for machine_id, was in before.machines.items():
            self._check_machine(was, after.machines.get(machine_id), operation, killed, where)
        self._check_new(before, after, operation, killed, where)
        self._check_snapshots(before, after, operation, where)
        self._remember(before, after, operation)
        self._check_bundles(where)
        self._check_process(client, before, after, operation, where)
        self._check_files(client, after, operation, where)
        self._check_left(where)
        if self.random.randrange(STORE_EVERY) == 0:
            self._check_store(client, where)
        if self.random.randrange(FORK_EVERY) == 0:
            self._check_fork(client, self.random.choice(sorted(after.snapshots)), where)

    def _check_machine(
        self, was: MachineInfo, now: MachineInfo | None, operation: Operation, killed: set[str], where: str
    ) -> None:
        mine, kind = operation.machine == was.id, operation.kind
        if now is None:
            if not (mine and kind.removes):
                self._lose(where, f"machine {was.name} is gone")
            return
        names = {was.name, operation.name} if mine and kind.renames else {was.name}
        if now.name not in names:
            self._lose(where, f"{was.name} is called {now.name}")
        states = {was.state, *(kind.allowed if mine else ())} | ({"failed"} if was.id in killed else set())
        if now.state not in states:
            self._lose(where, f"{was.name} was {was.state} and is {now.state}: {now.failure}")
        if now.state == "failed" and not (now.failure and now.failure.cause):
            self._lose(where, f"{was.name} failed without a cause")
        if mine and operation.acknowledged:
            undone = kind.removes or (kind.renames and now.name != operation.name)
            if kind.wanted and was.id not in killed:
                undone |= now.state != kind.wanted
            if undone:
                self._lose(where, f"the {kind.name} was acknowledged and is undone")

    def _check_new(
        self, before: Scene, after: Scene, operation: Operation, killed: set[str], where: str
    ) -> None:
        new = [after.machines[machine_id] for machine_id in after.machines.keys() - before.machines.keys()]
        makes = operation.kind.makes == "machine"
        if len(new) > makes:
            self._lose(where, f"machines out of nothing: {[info.name for info in new]}")
        for info in new:
            states = {*operation.kind.new_states} | ({"failed"} if info.id in killed else set())
            if info.name != operation.name or info.state not in states:
                self._lose(where, f"a new machine is not what was asked for: {info.name}, {info.state}")
            if info.state == "failed" and not (info.failure and info.failure.cause):
                self._lose(where, f"{info.name} failed without a cause")
        if makes and operation.acknowledged and not new:
            self._lose(where, f"the {operation.kind.name} was acknowledged and is undone")

    def _check_snapshots(self, before: Scene, after: Scene, operation: Operation, where: str) -> None:
        removed = operation.snapshot if operation.kind.removes else None
        for snapshot_id in before.snapshots.keys() - after.snapshots.keys() - {removed}:
            self._lose(where, f"snapshot {before.snapshots[snapshot_id].label} is gone")
        if removed in after.snapshots and operation.acknowledged:
            self._lose(where, "a deleted snapshot is there again")
        new = [after.snapshots[one].label for one in after.snapshots.keys() - before.snapshots.keys()]
        makes = operation.kind.makes == "snapshot"
        if new not in ([], [operation.name] if makes else []):
            self._lose(where, f"snapshots out of nothing: {new}")
        if makes and operation.acknowledged and not new:
            self._lose(where, "the snapshot was acknowledged and is not there")

    def _settle(self, client: bough.Hypervisor, where: str) -> None:
        deadline = time.monotonic() + SETTLE_TIMEOUT_S
        while True:
            infos = [machine.info() for machine in client.machines()]
            states = {info.name: info.state for info in infos}
            # The service is still noticing a QEMU that was killed just now.
            running = qemus(self.home)
            noticed = all((info.state in ("running", "paused")) == (info.id in running) for info in infos)
            if set(states.values()) <= SETTLED and noticed:
                return
            if time.monotonic() > deadline:
                self._lose(where, f"not settled after {SETTLE_TIMEOUT_S:g} s: {states}, QEMUs {running}")
                return
            time.sleep(0.05)

    def _check_left(self, where: str) -> None:
        left = wait_nothing_left(lambda: find_leftovers(self.home))
        if left:
            self._lose(where, str(left))

    def _check_store(self, client: bough.Hypervisor, where: str) -> None:
        leaks = 0
        for finding in client.doctor_store()["findings"]:
            if finding["kind"] == "disk-leaks":
                leaks += 1
            elif not finding["harmless"]:
                self._lose(where, f"doctor --store: {finding['kind']}: {finding['problem']}")
        if leaks:
            self.report.leaks += leaks
            client.doctor_store(repair=True)

    def _lose(self, where: str, what: str) -> None:
        self._say(f"LOST: {where}: {what}")
        self.report.losses.append(f"{where}: {what}")

    # -- files ----------------------------------------------------------------------------------

    def _remember(self, before: Scene, after: Scene, operation: Operation) -> None:
        """Remember the files that guests were told are on disk."""
        source = before.files.get(
            operation.machine or "", before.snapshot_files.get(operation.snapshot or "")
        )
        if operation.kind.of == "bundle":
            source = before.bundles[Path(operation.target[0])] or None
        if operation.kind.makes == "bundle" and operation.acknowledged:
            self._bundles[operation.bundle] = source or {}
        if source is not None:
            for machine_id in after.machines.keys() - before.machines.keys():
                self._files[machine_id] = source
            for snapshot_id in after.snapshots.keys() - before.snapshots.keys():
                self._snapshot_files[snapshot_id] = source
        target = operation.machine
        if operation.kind.writes and operation.acknowledged and target is not None:
            self._files[target] = {**self._files[target], operation.name: operation.name}
        if operation.kind.name == "restore" and target in self._files:
            then = self._snapshot_files.get(operation.target[1], {})
            if operation.acknowledged:
                self._files[target] = then
            else:  # either state is possible
                both = self._files[target].items() & then.items()
                self._files[target] = dict(both)
        self._files = {one: files for one, files in self._files.items() if one in after.machines}
        self._snapshot_files = {
            one: files for one, files in self._snapshot_files.items() if one in after.snapshots
        }

    def _check_files(self, client: bough.Hypervisor, after: Scene, operation: Operation, where: str) -> None:
        for machine_id, wanted in self._files.items():
            info = after.machines[machine_id]
            if info.state in ("running", "paused"):
                self._looked_at.pop(machine_id, None)
            elif self._looked_at.get(machine_id) is not wanted:
                self._check_disk(machine_id, wanted, f"{info.name}, {info.state}", where)
        if operation.machine in after.answering():
            self._check_inside(client, operation.machine, where)

    def _check_disk(self, machine_id: str, wanted: Files, name: str, where: str) -> None:
        try:
            found = read_files(self.home, machine_id, self.home.root.parent)
        except RuntimeError as error:
            self._lose(where, f"the disk of {name}: {error}")
            return
        self._looked_at[machine_id] = wanted
        self.report.files += len(wanted)
        for loss in compare(wanted, found, name):
            self._lose(where, loss)

    def _check_inside(self, client: bough.Hypervisor, machine_id: str, where: str) -> None:
        self._compare_inside(client.machine(machine_id), self._files[machine_id], where)

    def _compare_inside(self, machine: bough.Machine, wanted: Files, where: str) -> None:
        done = machine.shell(_LIST_FILES)
        found = dict(line[2:].split(":", 1) for line in done.stdout.splitlines() if ":" in line)
        if wanted and not found:
            return  # just booted, the disk is not mounted yet
        self.report.files += len(wanted)
        for loss in compare(wanted, found, f"{machine.name}, which runs"):
            self._lose(where, loss)

    # -- bundles, and processes over a suspend ----------------------------------------------------

    def _check_bundles(self, where: str) -> None:
        there = set(self._bundle_place.iterdir())
        for path in there - self._bundles.keys():
            self._lose(where, f"{path.name} is left of an export that was not acknowledged")
            path.unlink()
        for path in self._bundles.keys() - there:
            self._lose(where, f"{path.name} is gone")
            del self._bundles[path]

    def _check_process(
        self, client: bough.Hypervisor, before: Scene, after: Scene, operation: Operation, where: str
    ) -> None:
        machine_id = operation.machine or ""
        if operation.kind.name == "suspend" and machine_id in after.of_state("suspended"):
            self._words[machine_id] = operation.name
        for one in self._words.keys() - set(after.of_state("suspended")):
            word = self._words.pop(one)
            if one in after.of_state("running"):
                self._ask_process(client.machine(one), word, where)

    def _ask_process(self, machine: bough.Machine, word: str, where: str) -> None:
        """Ask the process for its word: it continued if it still knows the word."""
        machine.wait()
        said = machine.shell(ASK_PROCESS).stdout.strip()
        self.report.processes += 1
        if said != word:
            self._lose(where, f"the process in {machine.name} did not go on: {said!r} instead of {word!r}")

    def _check_import(self, client: bough.Hypervisor, bundle: Path, wanted: Files) -> None:
        machine = client.import_bundle(bundle, name=f"try-{bundle.stem}", identity="new")
        try:
            self.report.imports += 1
            if machine.state == "running":
                machine.wait()
                self._compare_inside(machine, wanted, f"at the end, imported from {bundle.name}")
                machine.stop(force=True)
            if wanted:
                self._check_disk(machine.id, wanted, machine.name, f"at the end, imported from {bundle.name}")
        finally:
            machine.delete(force=True)

    # -- everything still works ---------------------------------------------------------------------

    def _check_fork(self, client: bough.Hypervisor, snapshot_id: str, where: str) -> None:
        snapshot = client.snapshot(snapshot_id)
        with snapshot.fork(f"try-{snapshot_id}", ephemeral=True) as fork:
            self.report.forks += 1
            info = fork.info()
            wanted = self._snapshot_files.get(snapshot_id)
            if wanted is not None and info.agent == "answering":
                self._compare_inside(fork, wanted, where)

    def _finish_machine(self, machine: bough.Machine) -> None:
        try:
            if machine.state == "suspended":
                machine.resume()
                if (word := self._words.get(machine.id)) is not None:
                    self._ask_process(machine, word, "at the end")
            if machine.state == "paused":
                machine.resume()
            if machine.state in ("stopped", "failed"):
                machine.start(wait=machine.id in self._files)
            if machine.id in self._files:
                machine.wait()
                machine.shell(f"for try in $(seq 100); do mountpoint -q {PLACE} && break; sleep 0.1; done")
                self._compare_inside(machine, self._files[machine.id], "at the end")
            machine.stop(force=True)
        except BoughError as error:
            self._lose("at the end", f"{machine.name} does not start: {error.message}")

    def finish(self) -> None:
        """Check that every machine starts or reports why not, every snapshot is whole and forks, and every
        file exists.
        """
        client = bough.connect(self.home.root)
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(self._finish_machine, client.machines()))
        for snapshot in client.snapshots():
            try:
                snapshot.verify()
                self._check_fork(client, snapshot.id, "at the end")
            except BoughError as error:
                self._lose("at the end", f"snapshot {snapshot.label} does not fork: {error.message}")
        for bundle, wanted in self._bundles.items():
            try:
                self._check_import(client, bundle, wanted)
            except BoughError as error:
                self._lose("at the end", f"{bundle.name} cannot be imported: {error.message}")
        after = self._look(client)
        for machine_id, wanted in self._files.items():
            self._check_disk(machine_id, wanted, after.machines[machine_id].name, "at the end")
        self._check_left("at the end")
        self._check_store(client, "at the end")
