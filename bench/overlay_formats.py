"""Overlays of one format beside overlays of another: size, speed, merges, a long chain. Needs no guest.

    python -m bench.overlay_formats [DIRECTORY]

Prints one line per figure, a column per format. Each figure is the best of five runs in turns, so that other
load on the host counts little. All access goes through qemu-io, with the page cache, as bough's QEMU uses it.
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

FORMATS = {
    "64k": "cluster_size=64k",
    "128k, extended": "extended_l2=on,cluster_size=128k",
    "64k, extended": "extended_l2=on,cluster_size=64k",
}
BASE_MIB = 1024
ROUNDS = 5
FEW, MANY = 1_000, 20_000
CHAIN = 8
_BLOCK = 4096


class Overlays:
    """Files below a directory: a full raw base, and overlays of one format."""

    def __init__(self, root: Path, options: str) -> None:
        self._root = root
        self._options = options
        self.base = root / "base.raw"

    def create(self, name: str, below: Path | None = None) -> Path:
        path, below = self._root / name, below or self.base
        form = "raw" if below.suffix == ".raw" else "qcow2"
        words = ["create", "-q", "-f", "qcow2", "-o", self._options, "-b", str(below), "-F", form, str(path)]
        subprocess.run(["qemu-img", *words], check=True)
        return path

    def chain(self, length: int) -> Path:
        """Return the top of a chain in which each file got FEW random writes."""
        top = None
        for number in range(length):
            top = self.create(f"chain{number}.qcow2", top)
            do(top, random_blocks("write", FEW, number))
        assert top is not None
        return top


def random_blocks(verb: str, count: int, seed: int = 1) -> list[str]:
    places = random.Random(seed)  # the same places for each format
    return [f"{verb} -q {places.randrange(BASE_MIB * 256) * _BLOCK} {_BLOCK}" for _ in range(count)]


def sequential(verb: str) -> list[str]:
    return [f"{verb} -q {number}M 1M" for number in range(BASE_MIB)]


def do(path: Path, commands: list[str]) -> float:
    """Run commands of qemu-io, with a flush at the end. Return the seconds."""
    words = ["qemu-io", "-f", "qcow2", "-t", "writeback", "-i", "threads", str(path)]
    started = time.perf_counter()
    text = "\n".join([*commands, "flush", "quit", ""])
    subprocess.run(words, input=text, check=True, text=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def allocated_mb(path: Path) -> float:
    subprocess.run(["sync", str(path)], check=True)
    return path.stat().st_blocks * 512 / 1e6


def figures(overlays: Overlays) -> dict[str, float]:
    """Return all figures of one format, measured once."""
    found: dict[str, float] = {}
    top = overlays.create("top.qcow2")
    found["empty file, KB"] = allocated_mb(top) * 1000
    found["empty file, apparent KB"] = top.stat().st_size / 1e3
    found["1,000 random writes of 4 KiB, s"] = do(top, random_blocks("write", FEW))
    found["size after them, MB"] = allocated_mb(top)

    top = overlays.create("top.qcow2")
    found["20,000 random writes of 4 KiB, s"] = do(top, random_blocks("write", MANY))
    found["the same places again, s"] = do(top, random_blocks("write", MANY))
    found["20,000 random reads of written blocks, s"] = do(top, random_blocks("read", MANY))
    found["20,000 random reads of all blocks, s"] = do(top, random_blocks("read", MANY, 2))
    found["sequential read after them, s"] = do(top, sequential("read"))
    found["size after 20,000 writes, MB"] = allocated_mb(top)
    found["merge of 20,000 writes into an overlay below (commit), s"] = merge(overlays)

    top = overlays.create("top.qcow2")
    found["sequential write of 1 GiB, s"] = do(top, sequential("write"))
    found["sequential write again, s"] = do(top, sequential("write"))
    found["sequential read, s"] = do(top, sequential("read"))
    found["size after sequential writes, MB"] = allocated_mb(top)

    top = overlays.chain(CHAIN)
    found["chain of 8: 20,000 random reads, s"] = do(top, random_blocks("read", MANY, 99))
    found["chain of 8: open, s"] = do(top, [])
    found["chain of 8: merge into one (stream), s"] = stream(overlays, top)
    found["size of the merged file, MB"] = allocated_mb(top)
    return found


def merge(overlays: Overlays) -> float:
    below = overlays.create("below.qcow2")
    top = overlays.create("above.qcow2", below)
    do(top, random_blocks("write", MANY))
    return timed(lambda: subprocess.run(["qemu-img", "commit", "-q", "-d", str(top)], check=True))


def stream(overlays: Overlays, top: Path) -> float:
    """Copy the files between `top` and the base into `top`, as bough does while a machine is off."""
    words = ["qemu-img", "rebase", "-q", "-b", str(overlays.base), "-F", "raw", str(top)]
    return timed(lambda: subprocess.run(words, check=True))


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main() -> None:
    root = Path(tempfile.mkdtemp(prefix="overlays-", dir=sys.argv[1] if sys.argv[1:] else "/var/tmp"))
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in FORMATS}
    try:
        _fill(root / "base.raw")
        for _ in range(ROUNDS):
            for name, options in FORMATS.items():
                runs[name].append(figures(Overlays(root, options)))
    finally:
        shutil.rmtree(root)
    print(f"{'':58}" + "".join(f"{name:>16}" for name in FORMATS))
    for what in runs["64k"][0]:
        best = [min(run[what] for run in runs[name]) for name in FORMATS]
        print(f"{what:58}" + "".join(f"{one:16.3f}" for one in best))
    print(json.dumps(runs), file=sys.stderr)


def _fill(path: Path) -> None:
    with path.open("wb") as file:
        for _ in range(BASE_MIB):
            file.write(random.randbytes(1 << 20))


if __name__ == "__main__":
    main()
