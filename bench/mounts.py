"""A directory shared by host and guest, against copying the directory."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

from bench.harness import Bench
from bench.machine import a_guest, run_bough

ABOUT = "64 MiB through a mount, against bough cp; a walk of 2,000 files, against copying them"
NAME = "bench-mounts"
SIZE = 64 * 1024 * 1024
WALK = "find {} -type f -size +9 | wc -l"


def run(bench: Bench) -> None:
    with (
        tempfile.TemporaryDirectory(prefix="bough-bench-", dir="/var/tmp") as directory,
        a_guest(NAME, mounts=[f"{directory}:/srv/shared:rw"]) as (_, machine),
    ):
        shared = Path(directory)
        with (shared / "large").open("wb") as stream:
            subprocess.run(["head", "-c", str(SIZE), "/dev/urandom"], stdout=stream, check=True)
        for folder in range(100):
            (shared / "tree" / str(folder)).mkdir(parents=True)
            for file in range(20):
                (shared / "tree" / str(folder) / str(file)).write_text("x\n")
        bench.in_turns(
            "read 64 MiB of the host",
            ours=lambda: machine.shell("cat /srv/shared/large > /root/read", check=True),
            peer=lambda: run_bough("cp", shared / "large", f"{NAME}:/root/copied"),
            what=("cat from the mount", "bough cp"),
            rounds=3,
        )
        bench.in_turns(
            "write 64 MiB to the host",
            ours=lambda: machine.shell("cp /root/read /srv/shared/written", check=True),
            peer=lambda: run_bough("cp", f"{NAME}:/root/read", shared / "copied"),
            what=("cp to the mount", "bough cp"),
            rounds=3,
        )
        bench.in_turns(
            "walk 2,000 files and look at each",
            ours=lambda: machine.shell(WALK.format("/srv/shared/tree"), check=True),
            peer=lambda: run_bough("cp", shared / "tree", f"{NAME}:/root/"),
            what=("find in the mount", "bough cp of them"),
            rounds=3,
        )
