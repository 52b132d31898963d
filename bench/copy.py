"""Copies of a large file into a guest and out of it."""

from __future__ import annotations

import filecmp
import subprocess
import tempfile
from pathlib import Path

from bench.harness import Bench
from bench.machine import a_guest, run_bough
from bench.openssh import a_kept_connection

ABOUT = "256 MiB each way, against scp with a connection that is kept"
SIZE = 256 * 1024 * 1024
NAME = "bench-copy"


def run(bench: Bench) -> None:
    with (
        a_guest(NAME),
        a_kept_connection(NAME) as ssh,
        tempfile.TemporaryDirectory(prefix="bough-bench-", dir="/var/tmp") as directory,
    ):
        source, back = Path(directory) / "source", Path(directory) / "back"
        with source.open("wb") as stream:
            subprocess.run(["head", "-c", str(SIZE), "/dev/urandom"], stdout=stream, check=True)
        bench.in_turns(
            "copy 256 MiB into the guest",
            ours=lambda: run_bough("cp", source, f"{NAME}:/root/ours"),
            peer=lambda: ssh.copy(source, f"{NAME}:/root/peer"),
            what=("bough cp", "scp"),
            rounds=3,
        )
        bench.in_turns(
            "copy 256 MiB out of the guest",
            ours=lambda: run_bough("cp", f"{NAME}:/root/ours", back),
            peer=lambda: ssh.copy(f"{NAME}:/root/peer", Path(directory) / "peer"),
            what=("bough cp", "scp"),
            rounds=3,
        )
        if not filecmp.cmp(source, back, shallow=False):
            raise RuntimeError("what came back is not what was sent")
