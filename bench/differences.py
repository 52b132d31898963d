"""The time of `bough diff` for two running machines."""

from __future__ import annotations

from bench.harness import Bench
from bench.machine import a_guest, at_rest, run_bough

ABOUT = "two running machines of 2 GiB, which share 1.5 GiB of files, and differ in 250 MiB"
FILES = """
mkdir -p /srv/files
for number in $(seq 1500); do head -c 1000000 /dev/urandom > /srv/files/$number; done
sync
"""
CHANGES = """
for number in $(seq 250); do head -c 1000000 /dev/urandom > /srv/files/$number; done
echo changed > /etc/changed
"""


def run(bench: Bench) -> None:
    with a_guest("bench-differences", memory="2GiB", disk="8GiB") as (_, machine):
        machine.shell(FILES, check=True)
        at_rest(machine)
        with machine.fork(ephemeral=True) as other:
            other.shell(CHANGES, check=True)
            bench.in_turns(
                "differences of two running machines",
                ours=lambda: run_bough("diff", "--json", machine.name, other.name),
                peer=None,
                what=("bough diff", ""),
                rounds=5,
            )
