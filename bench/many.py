"""Many machines at once, and the resources of the service for them."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from bench.harness import Bench
from bench.machine import a_guest, at_rest

ABOUT = "20 running machines of 256 MiB, each with its agent, and the service's memory"
COUNT = int(os.environ.get("BOUGH_BENCH_MANY", "20"))
MIB = 1024


def run(bench: Bench) -> None:
    with a_guest("bench-many", memory="256MiB", uplink=False) as (hypervisor, machine), ExitStack() as made:
        at_rest(machine)
        snapshot = machine.snapshot()
        made.callback(snapshot.delete)
        pid = hypervisor.version()["pid"]
        bench.note(f"the service with one machine: {_memory(pid)}")
        started = time.monotonic()
        for fork in snapshot.fork(count=COUNT - 1, timeout=900):
            made.callback(fork.discard)
        bench.note(f"{COUNT - 1} forks answer after {time.monotonic() - started:.1f} s")
        machines = hypervisor.machines()
        states = {each.state for each in machines}
        bench.note(f"{len(machines)} machines are {', '.join(sorted(states))}")
        bench.note(f"the service with {len(machines)} machines: {_memory(pid)}")
        started = time.monotonic()
        with ThreadPoolExecutor(COUNT) as pool:
            done = list(pool.map(lambda each: each.exec("hostname").stdout.strip(), machines))
        bench.note(
            f"a command in each, at once: {time.monotonic() - started:.1f} s, {len(set(done))} answers"
        )
        bench.note(f"the service after that: {_memory(pid)}")
        before = _processor_s(pid)
        time.sleep(10)
        bench.note(f"idle, the service takes {(_processor_s(pid) - before) * 10:.1f} % of a core")


def _memory(pid: int) -> str:
    rows = [line.split() for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()]
    kib = {row[0]: int(row[1]) for row in rows if len(row) == 3}
    resident, share = kib["Rss:"] // MIB, kib["Pss:"] // MIB
    return f"{resident} MiB resident, {share} MiB of it its own share, {_templates(pid)} MiB of templates"


def _templates(pid: int) -> int:
    """Return the size of the service's memory files, which the forks share."""
    files = {}
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            if str(link.readlink()).startswith("/memfd:"):
                info = link.stat()
                files[info.st_ino] = info.st_blocks * 512
        except OSError:
            continue
    return sum(files.values()) >> 20


def _processor_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
