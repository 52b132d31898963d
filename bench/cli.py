"""The running time of the command itself."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import bough
from bench.harness import Bench, run_quietly
from bench.machine import IMAGE, run_bough

ABOUT = "the running time of the command, against Python's start and the commands of other hypervisors"
MACHINES = 500
PEERS = (("virsh", "--version"), ("limactl", "--version"), ("podman", "--version"), ("qemu-img", "--version"))


def run(bench: Bench) -> None:
    bench.in_turns(
        "bough version",
        ours=lambda: run_bough("version"),
        peer=lambda: run_quietly(sys.executable, "-c", "pass"),
        what=("bough version", "python3 -c pass: the least any Python program takes"),
        rounds=30,
        warm_ups=3,
    )
    for peer in PEERS:
        if shutil.which(peer[0]):
            bench.in_turns(
                f"bough version and {peer[0]}",
                ours=lambda: run_bough("version"),
                peer=lambda peer=peer: run_quietly(*peer),  # type: ignore[misc]
                what=("bough version", " ".join(peer)),
                rounds=15,
            )
    with many_machines(MACHINES) as home:
        run_bough("list", home=home)
        bench.in_turns(
            f"bough list with {MACHINES} machines",
            ours=lambda: run_bough("list", home=home),
            peer=lambda: run_quietly(sys.executable, "-c", "pass"),
            what=("bough list", "python3 -c pass"),
            rounds=20,
            warm_ups=2,
        )


@contextmanager
def many_machines(count: int) -> Iterator[Path]:
    """Yield a BOUGH_HOME with that many stopped machines; the image is a copy of the default home's."""
    bough.connect().build_image(IMAGE)
    default = Path(bough.connect().version()["home"])
    with tempfile.TemporaryDirectory(prefix="bough-bench-", dir="/var/tmp") as directory:
        home = Path(directory)
        home.chmod(0o711)
        run_quietly("cp", "-a", "--sparse=always", default / "images", default / "labels.json", home)
        hypervisor = bough.connect(home)
        try:
            with ThreadPoolExecutor(8) as pool:
                list(pool.map(lambda number: hypervisor.create(IMAGE, name=f"m{number}"), range(count)))
            yield home
        finally:
            hypervisor.shutdown()
            subprocess.run(["sleep", "0.5"], check=True)
