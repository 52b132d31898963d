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
from bench.stream import CONTROL
from bench.stream import PORT as STREAM_PORT
from bough.errors import BoughError

if TYPE_CHECKING:
    from bough.client.project import Project, ProjectSnapshot

ABOUT = "a project of three machines of 512 MiB: snapshots, and forks with open connections"
ROLES = ("db", "app", "web")
ALIVE = 10
STREAMED = 50
#: The part with the stream ends after this time, and the fork that is under way.
STREAM_S = 330.0
_FORK_S, _LOOK_S = 30.0, 10
_STREAM = Path(__file__).with_name("stream.py")
_IN_GUEST = "/run/stream.py"
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
    with a_project(bench) as (hypervisor, project):
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
            f"({taken[0] * 1000:.0f} to {taken[-1] * 1000:.0f}; at most 500 ms)"
        )
        alive(bench, snapshot)
        streams(bench, project)
        snapshot.delete()


@contextmanager
def a_project(bench: Bench) -> Iterator[tuple[bough.Hypervisor, Project]]:
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
            bench.note(f"up from booted snapshots: {time.perf_counter() - started:.2f} s (at most 3 s)")
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
    bench.note(
        f"longest pause of a machine: {median(found):.0f} ms "
        f"({min(found):.0f} to {max(found):.0f}; at most 60 ms)"
    )


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
    bench.note(
        f"{ALIVE} forks alive: {sum(used) / len(used):.0f} MiB a machine, the largest {max(used):.0f} "
        "(at most 50 MiB)"
    )
    for fork in forks:
        fork.delete()


def streams(bench: Bench, project: Project) -> None:
    """Fork while a stream and 20 idle connections run; all must go on in the fork and in the parent."""
    for role in ROLES[:2]:
        project[role].copy_to(_STREAM, _IN_GUEST)
    _sh(project, "db", f"systemd-run --unit stream python3 {_IN_GUEST} serve")
    project["db"].wait_for_open_port(STREAM_PORT, timeout=60)
    _sh(project, "app", f"systemd-run --unit stream python3 {_IN_GUEST} send db")
    project["app"].wait_for_file(CONTROL, timeout=60)
    ends, troubles, taken = time.monotonic() + STREAM_S, [], []
    for number in range(1, STREAMED + 1):
        started = time.monotonic()
        trouble = _fork_in_stream(project)
        taken.append(time.monotonic() - started)
        if trouble:
            troubles.append(trouble)
            print(f"  fork {number}: {trouble}", flush=True)
        if time.monotonic() > ends:
            break
    made = len(taken)
    missing = "" if made == STREAMED else f"; no time was left for {STREAMED - made} of {STREAMED}"
    bench.note(
        f"a stream of 32 Mbit/s and 20 idle connections went on in fork and parent: "
        f"{made - len(troubles)} of {made} forks (all must), {median(taken):.1f} s a fork{missing}"
    )


def _fork_in_stream(project: Project) -> str:
    """Fork once. Return what did not go on, or ""."""
    try:
        with project.fork(ephemeral=True, timeout=_FORK_S) as fork:
            return _goes_on(fork, "the fork") or _goes_on(project, "the parent")
    except BoughError as error:
        return f"no fork: {error}"


def _goes_on(project: Project, whose: str) -> str:
    look = ("python3", _IN_GUEST, "look", str(_LOOK_S))
    done = project["app"].exec(*look, timeout=2 * _LOOK_S)
    return f"in {whose}: {done.stderr.strip()[-200:]}" if done.exit_code else ""


def _sh(project: Project, role: str, command: str) -> str:
    return project[role].exec("sh", "-c", command, check=True, timeout=60).stdout.strip()
