"""Reads of a machine with many snapshots, beside reads of the same machine before."""

from __future__ import annotations

import time

import bough
from bench.harness import Bench
from bench.machine import a_guest, at_rest
from bough.machines.disks.merging import MOST_LAYERS

ABOUT = "reads in a 512 MiB Debian before and after 50 snapshots, past the guest's page cache"
SNAPSHOTS = 50
FILE_MIB = 128
_PIECES = FILE_MIB * 16
#: argv: file, bytes a read, seconds. Prints the seconds that 1,000 reads took.
READ = """
import mmap, os, random, sys, time
fd = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECT)
length, most = int(sys.argv[2]), float(sys.argv[3])
places = [place * length for place in range(os.fstat(fd).st_size // length)]
if length == 4096:
    random.Random(1).shuffle(places)
buffer = mmap.mmap(-1, length)
count, began = 0, time.perf_counter()
while time.perf_counter() - began < most:
    os.preadv(fd, [buffer], places[count % len(places)])
    count += 1
print((time.perf_counter() - began) / count * 1000)
"""
KINDS = {"random reads of 4 KiB": 4096, "sequential reads of 128 KiB": 131072}


def run(bench: Bench) -> None:
    with a_guest("bench-chains", memory="512MiB") as (_, machine):
        at_rest(machine)
        machine.write_file("/root/read.py", READ)
        make = f"dd if=/dev/urandom of=/root/file bs=1M count={FILE_MIB} conv=fsync 2>/dev/null"
        machine.shell(make, check=True)
        base = machine.snapshot()
        # This fork gets no further snapshots. Both machines continue from `base` and are read in turns.
        with base.fork(ephemeral=True) as before:
            snapshots = [_age(machine, number) for number in range(SNAPSHOTS)]
            _wait_merged(machine)
            taken = sum(one.info().disk_bytes for one in snapshots)
            written = f"{SNAPSHOTS * 1.06:.0f} MiB written"
            bench.note(f"{SNAPSHOTS} snapshots take {taken / 2**20:.0f} MiB on disk, for {written}")
            _compare(bench, machine, before, f"after {SNAPSHOTS} snapshots")
            while machine.info().layers < MOST_LAYERS:
                snapshots.append(_age(machine, len(snapshots)))
            _compare(bench, machine, before, "with the longest chain")
        for snapshot in [*snapshots, base]:
            snapshot.delete()


def _age(machine: bough.Machine, number: int) -> bough.Snapshot:
    """Write 1 MiB of new data and a piece of the file, then take a snapshot."""
    piece = number * 367 % _PIECES
    machine.shell(
        "dd if=/dev/urandom of=/root/other bs=1M count=1 conv=fsync 2>/dev/null;"
        f"dd if=/dev/urandom of=/root/file bs=64k count=1 seek={piece} conv=notrunc,fsync 2>/dev/null",
        check=True,
    )
    return machine.snapshot(memory=False)


def _compare(bench: Bench, machine: bough.Machine, before: bough.Machine, when: str) -> None:
    layers = machine.info().layers, before.info().layers
    for kind, length in KINDS.items():
        bench.in_turns(
            f"{kind} {when}",
            ours=lambda length=length: _read(machine, length),  # type: ignore[misc]
            peer=lambda length=length: _read(before, length),  # type: ignore[misc]
            what=(f"1,000 reads, chain of {layers[0]}", f"the same machine before, chain of {layers[1]}"),
            rounds=7,
            warm_ups=1,
        )


def _wait_merged(machine: bough.Machine) -> None:
    for _ in range(40):
        if machine.info().layers <= MOST_LAYERS:
            return
        time.sleep(0.5)
    raise RuntimeError("the chain is not merged")


def _read(machine: bough.Machine, length: int) -> float:
    words = ["python3", "/root/read.py", "/root/file", str(length), "3"]
    return float(machine.exec(*words, check=True).stdout)
