"""Simulate a power loss: compare the writes of bough's QEMU, cut at every flush, with what its guest was
told.

bough starts a machine as usual, but with a QEMU that records writes of the second disk twice: the guest's
writes to the disk, and QEMU's writes to the qcow2 file on the host. The guest writes and syncs files one
after the other. Each acknowledgement is noted with the present lengths of the logs.
"""

from __future__ import annotations

import json
import os
import random
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import bough
from bough.machines.record import MachineRecord
from bough.paths import Home
from tests.torture.files import DISK, PLACE, PREPARE, WRITE, read_file_system
from tests.torture.writes import Cut, Write, apply, cuts, parse_log

_DISK = "disk1"
_QEMU = """#!/bin/sh
# QEMU, whose second disk is recorded: above qcow2 what the guest writes, below it what the host is given.
log() { echo "log.driver=file,log.filename=$disks/$1.log,discard=unmap"; }
count=$#
while [ "$count" -gt 0 ]; do
  word=$1; shift; count=$((count - 1))
  case $word in
  driver=file,node-name=DISK-file,*)
    disks=${word#*,filename=}; disks=${disks%%,*}; disks=${disks%/*}
    set -- "$@" "$word" ;;
  driver=qcow2,node-name=DISK,file=DISK-file,*)
    set -- "$@" "driver=blklogwrites,node-name=DISK-host,file=DISK-file,$(log host)" \\
      -blockdev "driver=qcow2,node-name=DISK-qcow2,file=DISK-host,${word#*,file=DISK-file,}" \\
      -blockdev "driver=blklogwrites,node-name=DISK,file=DISK-qcow2,$(log guest)" ;;
  *) set -- "$@" "$word" ;;
  esac
done
exec REAL "$@"
""".replace("DISK", _DISK)

_APPEND = f'cd {PLACE} && cat >> "$1" && sync "$1"'
_REPLACE = f'cd {PLACE} && cat > "$1.new" && sync "$1.new" && mv "$1.new" "$1" && sync .'
_APPENDED, _REPLACED = "appended", "replaced"


@contextmanager
def recording_qemu(root: Path) -> Iterator[None]:
    """Let services that start in the block find this QEMU before the real one."""
    name = "qemu-system-x86_64"
    real = shutil.which(name)
    assert real is not None
    directory = root / "qemu" / "bin"
    directory.mkdir(parents=True)
    (directory / name).write_text(_QEMU.replace("REAL", real))
    (directory / name).chmod(0o755)
    before = os.environ["PATH"]
    os.environ["PATH"] = f"{directory}:{before}"
    try:
        yield
    finally:
        os.environ["PATH"] = before


@dataclass
class Told:
    """The files that a guest was told are on its disk, by the length of each log at that time."""

    sizes: list[dict[str, int]] = field(default_factory=list)
    states: list[dict[str, str]] = field(default_factory=list)

    def by(self, level: str, end: int) -> int:
        """Return the number of acknowledgements until the log had that length."""
        return sum(size[level] <= end for size in self.sizes)


@dataclass
class Recording:
    """A recording; `first` is the qcow2 file before the start; `layers` are its backing files."""

    root: Path
    first: Path
    layers: list[Path]
    size_bytes: int
    told: Told

    def log(self, level: str) -> Path:
        return self.root / f"{level}.log"


def record(home: Home, image: str, root: Path, *, count: int, seed: int) -> Recording:
    """Boot a machine on an overlay, as after a snapshot, and let it write `count` files."""
    client = bough.connect(home.root)
    machine = client.create(image, name="power", memory="512MiB", uplink=False, disks=[DISK])
    try:
        machine.snapshot("before")
        paths = home.machine(machine.id)
        disk = MachineRecord.read(paths).disks[1]
        first = root / "first.qcow2"
        shutil.copyfile(paths.disks / disk.file, first)
        logs = {level: paths.disks / f"{level}.log" for level in ("guest", "host")}
        for log in logs.values():
            log.touch(0o600)
        machine.start()
        machine.shell(PREPARE, check=True)
        told = _write_files(machine, logs, count, random.Random(seed))
        machine.stop(force=True)
        for log in logs.values():
            shutil.copyfile(log, root / log.name)
        layers = [root / Path(layer).name for layer in disk.layers]
        for layer, copy in zip(disk.layers, layers, strict=True):
            shutil.copyfile(home.root / layer, copy)
    finally:
        machine.delete(force=True)
        client.snapshot("before").delete()
    return Recording(root, first, layers, disk.size_bytes, told)


def _write_files(machine: bough.Machine, logs: dict[str, Path], count: int, rng: random.Random) -> Told:
    told, state = Told(), {_APPENDED: ""}
    for number in range(count):
        content = secrets.token_hex(rng.choice((8, 2000, 60_000)))
        script, name = rng.choice(((WRITE, f"new-{number}"), (_APPEND, _APPENDED), (_REPLACE, _REPLACED)))
        machine.exec("sh", "-c", script, "sh", name, input=content, check=True)
        state = {**state, name: state[name] + content if script is _APPEND else content}
        told.sizes.append({level: log.stat().st_size for level, log in logs.items()})
        told.states.append(state)
    return told


@dataclass
class Verdict:
    cuts: int = 0
    flushes: int = 0
    files: int = 0
    losses: list[str] = field(default_factory=list)


def judge(recording: Recording, level: str, *, most: int | None = None, seed: int = 0) -> Verdict:
    """Cut the power at every flush, or at `most` of the moments, and check the files.

    Args:
        level: "guest": the disk as its guest has written it; "host": the qcow2 file.
    """
    rng = random.Random(seed)
    log = recording.log(level)
    writes = parse_log(log)
    verdict = Verdict(flushes=sum(write.is_barrier for write in writes))
    moments = list(cuts(writes, rng))
    if most is not None and len(moments) > most:
        moments = [*rng.sample(moments[:-2], most - 2), *moments[-2:]]
    for cut in moments:
        told = recording.told.by(level, _end(writes, cut))
        where = f"{level}, power cut after write {cut.seen}, {len(cut.kept)} kept, {told} acknowledged"
        try:
            found = _look(recording, level, log, cut, is_formatted=told > 0)
        except RuntimeError as error:
            verdict.losses.append(f"{where}: {error}")
            continue
        verdict.cuts += 1
        if told:
            wanted = recording.told.states[told - 1]
            later = recording.told.states[told : told + 1]
            verdict.files += len(wanted)
            verdict.losses += [f"{where}: {loss}" for loss in _compare(wanted, later, found)]
    return verdict


def _end(writes: list[Write], cut: Cut) -> int:
    """Return the end of the log just before the next barrier."""
    return writes[cut.seen - 1].end


def _look(recording: Recording, level: str, log: Path, cut: Cut, *, is_formatted: bool) -> dict[str, str]:
    with tempfile.TemporaryDirectory(dir=recording.root) as directory:
        raw = Path(directory, "raw")
        if level == "guest":
            with raw.open("wb") as file:
                file.truncate(recording.size_bytes)
            apply(cut.kept, log, raw)
        else:
            disk = Path(directory, "disk.qcow2")
            shutil.copyfile(recording.first, disk)
            apply(cut.kept, log, disk)
            _run("qemu-img", "check", "-q", _node([disk]), fine=(0, 3))  # 3: clusters without a user
            _run("qemu-img", "convert", "-O", "raw", _node([disk, *recording.layers]), str(raw))
        return read_file_system(raw) if is_formatted else {}


def _node(files: list[Path]) -> str:
    """Return a block node of the first file over the others."""
    node: dict[str, object] | None = None
    for file in reversed(files):
        node = {"driver": "qcow2", "file": {"driver": "file", "filename": str(file)}, "backing": node}
    return f"json:{json.dumps(node)}"


def _compare(wanted: dict[str, str], later: list[dict[str, str]], found: dict[str, str]) -> list[str]:
    """Return the lost files. A file being written at that moment may exist already, an appended
    file in part.
    """
    lost = []
    for name, content in wanted.items():
        fine = {content, *(state[name] for state in later)}
        there = found.get(name)
        appended = name == _APPENDED and there is not None and there.startswith(content)
        if there not in fine and not appended and not (name == _APPENDED and content == ""):
            lost.append(f"{name} is {'gone' if there is None else 'not what was written'}")
    return lost


def _run(*command: str, fine: tuple[int, ...] = (0,)) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    if done.returncode not in fine:
        raise RuntimeError(f"{command[:2]}: {done.returncode}: {done.stdout[-500:]}{done.stderr[-500:]}")
