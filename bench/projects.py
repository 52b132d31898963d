"""A project of three machines: pause of a snapshot, time and memory of forks, a stream through many forks."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import bough
from bench.fork import private_mib
from bench.harness import Bench
from bench.machine import AT_EASE_S, IMAGE, wait_for_prewarm

if TYPE_CHECKING:
    from bough.client.project import Project, ProjectSnapshot

ABOUT = "a project of three machines of 512 MiB: snapshots, and forks with open connections"
ROLES = ("db", "app", "web")
ALIVE = 10
STREAMED = 50
_CHATTER = Path(__file__).parents[1] / "tests" / "acceptance" / "chatter.py"
_FILE = f"""
name = "bench-trio"
[shared.base]
image = "{IMAGE}"
memory = "512MiB"
networks = ["back"]
[networks.back]
[machines.db]
extends = "base"
[machines.app]
extends = "base"
[machines.web]
extends = "base"
"""


def run(bench: Bench) -> None:
    with a_project() as (hypervisor, project):
        for role in ROLES:
            project[role].wait("booted", timeout=300)
        time.sleep(5)
        pauses(bench, project)
        snapshot = project.snapshot()
        bench.note(f"a fork just after the snapshot: {one(snapshot) * 1000:.0f} ms")
        for _ in ROLES:
            wait_for_prewarm(hypervisor)
        time.sleep(AT_EASE_S)
        taken = sorted(one(snapshot) for _ in range(7))
        bench.note(
            f"a fork of a pre-warmed snapshot, until all three have answered: {median(taken) * 1000:.0f} ms "
            f"({taken[0] * 1000:.0f} to {taken[-1] * 1000:.0f})"
        )
        alive(bench, snapshot)
        streams(bench, project)
        snapshot.delete()


@contextmanager
def a_project() -> Iterator[tuple[bough.Hypervisor, Project]]:
    """Yield a running project of the default home; delete it afterwards."""
    hypervisor = bough.connect()
    hypervisor.build_image(IMAGE)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "bough.toml")
        path.write_text(_FILE)
        project = hypervisor.project(path)
        try:
            project.up()
            project.down(volumes=True, force=True)
            started = time.perf_counter()
            project.up()
            print(f"  up from booted snapshots: {time.perf_counter() - started:.2f} s")
            yield hypervisor, project
        finally:
            project.down(volumes=True, force=True)


def pauses(bench: Bench, project: Project) -> None:
    """Take snapshots of machines at rest."""
    found = []
    for _ in range(10):
        snapshot = project.snapshot()
        found.append(snapshot.info().pause_ms or 0.0)
        snapshot.delete()
        time.sleep(1)
    bench.note(f"longest pause of a machine: {median(found):.0f} ms ({min(found):.0f} to {max(found):.0f})")


def one(snapshot: ProjectSnapshot) -> float:
    started = time.perf_counter()
    fork = snapshot.fork(ephemeral=True)
    taken = time.perf_counter() - started
    fork.delete()
    time.sleep(AT_EASE_S)
    return taken


def alive(bench: Bench, snapshot: ProjectSnapshot) -> None:
    """Keep many forks alive, and look at their memory."""
    started = time.perf_counter()
    forks = snapshot.fork(count=ALIVE, ephemeral=True, timeout=900)
    taken = time.perf_counter() - started
    time.sleep(10)
    used = [private_mib(machine.info().pid) for fork in forks for machine in fork.machines.values()]
    bench.note(f"{ALIVE} forks of one call: {taken:.1f} s")
    bench.note(f"{ALIVE} forks alive: {sum(used) / len(used):.0f} MiB a machine (at most {max(used):.0f})")
    for fork in forks:
        fork.delete()


def streams(bench: Bench, project: Project) -> None:
    """Fork while a stream and 20 idle connections run; look whether all go on in parent and fork."""
    for role in ROLES:
        project[role].copy_to(_CHATTER, "/run/chatter.py")
    _sh(project, "db", "echo bench > /run/whose; systemd-run --unit chatter python3 /run/chatter.py serve")
    time.sleep(2)
    _sh(project, "app", "systemd-run --unit chatter python3 /run/chatter.py talk db")
    time.sleep(2)
    went_on = 0
    for _ in range(STREAMED):
        with project.fork(ephemeral=True) as fork:
            went_on += _goes_on(fork) and _goes_on(project)
    bench.note(f"a stream and 20 idle connections went on in parent and fork: {went_on} of {STREAMED}")


def _goes_on(project: Project) -> bool:
    before = _sh(project, "app", "rm -f /run/chatter/idle; touch /run/chatter/check; cat /run/chatter/count")
    for _ in range(100):
        time.sleep(0.1)
        told = _sh(project, "app", "cat /run/chatter/count /run/chatter/idle 2>/dev/null || true").split()
        if len(told) >= 2 and int(told[0]) > int(before) and told[1] == "20":
            return True
    return False


def _sh(project: Project, role: str, command: str) -> str:
    return project[role].exec("sh", "-c", command, check=True).stdout.strip()
