"""Operations during which a process is killed. To add an operation, add an entry to KINDS."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import bough
from bough.contract.answers import MachineInfo, SnapshotInfo
from bough.machines.disks.merging import MOST_LAYERS
from tests.torture.files import DISK, PLACE, WRITE, Files

IMAGE = "debian:12"
#: The guest of this machine need not answer.
SMALL: dict[str, Any] = {"memory": "128MiB", "vcpus": 1, "uplink": False}
#: A machine with an agent, and with files that it was told are on disk.
WORKER: dict[str, Any] = {"memory": "256MiB", "vcpus": 1, "uplink": False, "disks": [DISK]}
#: The snapshot from which workers are forked; never deleted.
SEED = "seed"
MOST_MACHINES = 6
MOST_SNAPSHOTS = 5
MOST_RUNNING = 3
MOST_BUNDLES = 2

#: sh: a process that answers with the word that it was started with: "$1".
START_PROCESS = """
setsid sh -c 'word=$1; trap "echo \\$word > /run/word" USR1; echo $$ > /run/pid
while :; do sleep 600 & wait $!; done' process "$1" </dev/null >/dev/null 2>&1 &
until [ -s /run/pid ]; do sleep 0.05; done
"""
ASK_PROCESS = """
rm -f /run/word; kill -USR1 "$(cat /run/pid)"
for try in $(seq 200); do [ -s /run/word ] && break; sleep 0.05; done
cat /run/word
"""

#: One or more ids: the target, and other participants.
Target = tuple[str, ...]


@dataclass
class Scene:
    """Existing machines and snapshots, and files known to be on disks.

    Attributes:
        files, snapshot_files, bundles: by machine, snapshot and file: the files that their guests were told
            of.
    """

    machines: dict[str, MachineInfo]
    snapshots: dict[str, SnapshotInfo]
    files: dict[str, Files] = field(default_factory=dict)
    snapshot_files: dict[str, Files] = field(default_factory=dict)
    bundles: dict[Path, Files] = field(default_factory=dict)

    def of_state(self, *states: str) -> list[str]:
        return [info.id for info in self.machines.values() if info.state in states]

    def answering(self) -> list[str]:
        """Return machines that can be told to write a file."""
        return [
            info.id
            for info in self.machines.values()
            if info.state == "running" and info.agent == "answering" and info.id in self.files
        ]

    @property
    def has_room(self) -> bool:
        return len(self.machines) < MOST_MACHINES and len(self.of_state("running", "paused")) < MOST_RUNNING


@dataclass(frozen=True)
class Kind:
    """A kind of operation.

    Attributes:
        typical_s: usual duration in seconds; the kill comes at some moment of it.
        targets: possible targets at present.
        of: type of `target[0]`.
        allowed: possible states of the target afterwards, beside its state before.
        wanted: the state of the target after an acknowledgement, if its QEMU was not killed.
        weight: relative frequency.
        makes: type of a new thing called `operation.name`, if one may exist; `new_states` of a machine. A
            bundle
            exists only after an acknowledgement.
        removes: the target may be gone.
    """

    name: str
    typical_s: float
    targets: Callable[[Scene], list[Target]]
    run: Callable[[bough.Hypervisor, Operation], object]
    of: Literal["machine", "snapshot", "bundle"] = "machine"
    allowed: tuple[str, ...] = ()
    wanted: str | None = None
    makes: Literal["machine", "snapshot", "bundle"] | None = None
    new_states: tuple[str, ...] = ("stopped",)
    removes: bool = False
    renames: bool = False
    writes: bool = False
    weight: int = 1


@dataclass
class Operation:
    """An operation; `bundle`: the file that an export makes."""

    kind: Kind
    target: Target
    name: str
    bundle: Path
    acknowledged: bool = False
    error: BaseException | None = None

    @property
    def machine(self) -> str | None:
        return self.target[0] if self.target and self.kind.of == "machine" else None

    @property
    def snapshot(self) -> str | None:
        return self.target[0] if self.target and self.kind.of == "snapshot" else None


def each(ids: list[str]) -> list[Target]:
    return [(one,) for one in ids]


def _write(hv: bough.Hypervisor, op: Operation) -> None:
    hv.machine(op.target[0]).exec("sh", "-c", WRITE, "sh", op.name, input=op.name, check=True)


def _copy(hv: bough.Hypervisor, op: Operation) -> None:
    machine = hv.machine(op.target[0])
    machine.exec("mountpoint", "-q", PLACE, check=True)
    machine.write_file(f"{PLACE}/{op.name}", op.name)
    machine.exec("sync", f"{PLACE}/{op.name}", PLACE, check=True)


def _merge(hv: bough.Hypervisor, op: Operation) -> None:
    """Make a chain so long that a merge begins, which runs on after this operation."""
    machine = hv.machine(op.target[0])
    machine.exec("sh", "-c", "head -c 8M /dev/urandom > /root/ballast; sync /root/ballast", check=True)
    for _ in range(MOST_LAYERS):
        machine.snapshot(op.name, memory=False).delete()
    machine.snapshot(op.name, memory=False)


def _suspend(hv: bough.Hypervisor, op: Operation) -> None:
    machine = hv.machine(op.target[0])
    machine.exec("sh", "-c", f"rm -f /run/pid; {START_PROCESS}", "sh", op.name, check=True)
    machine.suspend()


def _restorable(scene: Scene) -> list[Target]:
    return [
        (machine.id, snapshot.id)
        for machine in scene.machines.values()
        for snapshot in scene.snapshots.values()
        if machine.state in ("running", "paused", "stopped", "failed")
        and (snapshot.machine == machine.id or machine.raw.get("forked_from") == snapshot.id)
    ]


_RESTING = ("stopped", "failed")
_RUN = ("running", "failed", "stopped")

KINDS: tuple[Kind, ...] = (
    Kind(
        "create", 0.12,
        lambda scene: [()] if len(scene.machines) < MOST_MACHINES else [],
        lambda hv, op: hv.create(IMAGE, name=op.name, **SMALL),
        makes="machine",
    ),
    Kind(
        "start", 0.35,
        lambda scene: each(scene.of_state(*_RESTING)) if scene.has_room else [],
        lambda hv, op: hv.machine(op.target[0]).start(wait=False),
        allowed=_RUN, wanted="running",
    ),
    Kind(
        "stop", 0.1,
        lambda scene: each(scene.of_state("running")),
        lambda hv, op: hv.machine(op.target[0]).stop(force=True),
        allowed=("stopped",), wanted="stopped",
    ),
    Kind(
        "restart", 0.5,
        lambda scene: each(scene.of_state("running")),
        lambda hv, op: hv.machine(op.target[0]).restart(deadline=0, wait=False),
        allowed=_RUN, wanted="running",
    ),
    Kind(
        "pause", 0.01,
        lambda scene: each(scene.of_state("running")),
        lambda hv, op: hv.machine(op.target[0]).pause(),
        allowed=("paused",), wanted="paused",
    ),
    Kind(
        "resume", 0.01,
        lambda scene: each(scene.of_state("paused")),
        lambda hv, op: hv.machine(op.target[0]).resume(),
        allowed=("running",), wanted="running",
    ),
    Kind(
        "suspend", 0.8,
        lambda scene: each(scene.answering()),
        _suspend,
        allowed=("suspended",), wanted="suspended", weight=2,
    ),
    Kind(
        "resume from disk", 0.6,
        lambda scene: each(scene.of_state("suspended")) if scene.has_room else [],
        lambda hv, op: hv.machine(op.target[0]).resume(),
        allowed=("running", "failed"), wanted="running", weight=2,
    ),
    Kind(
        "rename", 0.015,
        lambda scene: each(list(scene.machines)),
        lambda hv, op: hv.machine(op.target[0]).rename(op.name),
        renames=True,
    ),
    Kind(
        "delete", 0.03,
        lambda scene: each(scene.of_state(*_RESTING, "suspended")) if len(scene.machines) > 1 else [],
        lambda hv, op: hv.machine(op.target[0]).delete(),
        removes=True,
    ),
    Kind("exec", 0.1, lambda scene: each(scene.answering()), _write, writes=True, weight=4),
    Kind("cp", 0.3, lambda scene: each(scene.answering()), _copy, writes=True, weight=3),
    Kind(
        "snapshot", 0.6,
        lambda scene: each(scene.of_state("running", "paused", *_RESTING))
        if len(scene.snapshots) < MOST_SNAPSHOTS
        else [],
        lambda hv, op: hv.machine(op.target[0]).snapshot(op.name),
        makes="snapshot", weight=2,
    ),
    Kind(
        "fork", 0.7,
        lambda scene: each(list(scene.snapshots)) if scene.has_room else [],
        lambda hv, op: hv.snapshot(op.target[0]).fork(op.name),
        of="snapshot", makes="machine", new_states=_RUN, weight=2,
    ),
    Kind(
        "fork of a machine", 0.9,
        lambda scene: each(scene.answering()) if scene.has_room else [],
        lambda hv, op: hv.machine(op.target[0]).fork(op.name),
        makes="machine", new_states=_RUN, weight=2,
    ),
    Kind(
        "restore", 0.8,
        _restorable,
        lambda hv, op: hv.machine(op.target[0]).restore(op.target[1]),
        allowed=_RUN, weight=2,
    ),
    Kind(
        "merge", 4,
        lambda scene: each(scene.answering()) if len(scene.snapshots) < MOST_SNAPSHOTS else [],
        _merge,
        makes="snapshot", weight=2,
    ),
    Kind(
        "delete of a snapshot", 0.03,
        lambda scene: each([info.id for info in scene.snapshots.values() if info.label != SEED])
        if len(scene.snapshots) > 2
        else [],
        lambda hv, op: hv.snapshot(op.target[0]).delete(),
        of="snapshot", removes=True,
    ),
    Kind(
        "export", 2.5,
        lambda scene: each([*scene.answering(), *scene.of_state("suspended", *_RESTING)])
        if len(scene.bundles) < MOST_BUNDLES
        else [],
        lambda hv, op: hv.machine(op.target[0]).export(op.bundle, without_image=True),
        makes="bundle", weight=2,
    ),
    Kind(
        "import", 2.5,
        lambda scene: each([str(file) for file in scene.bundles]) if scene.has_room else [],
        lambda hv, op: hv.import_bundle(op.target[0], name=op.name, identity="new"),
        of="bundle", makes="machine", new_states=(*_RUN, "suspended"), weight=2,
    ),
)  # fmt: skip
