"""A command on its own machine, against a container of the same distribution."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable

import bough
from bench.harness import RESULTS, Bench, run_quietly
from bench.machine import AT_EASE_S, IMAGE, run_bough, wait_for_prewarm, wait_for_standby

ABOUT = "`bough run` of true, against `podman run` of true in a Debian of packages"
ROOT = RESULTS / "peer" / "root"
GONE_TIMEOUT_S = 120


def run(bench: Bench) -> None:
    hypervisor = bough.connect()
    hypervisor.build_image(IMAGE)
    peer = container() if shutil.which("podman") else None
    if peer is None:
        bench.note("podman is not installed: no container to compare with")
    what = (f"bough run {IMAGE} -- true", "podman run --rm --rootfs ROOT true")
    hypervisor.keep_standby(IMAGE, 0)
    run_bough("run", IMAGE, "--", "true")  # the first run boots the image
    wait_for_prewarm(hypervisor)
    bench.in_turns("run, no standby machine", ours=ours, peer=peer, what=what, rounds=8, warm_ups=1)
    bench.in_turns("run from Python, no standby machine", ours=lambda: python(hypervisor), peer=None,
                   what=("hv.run(), to an answered ping", ""), rounds=8, warm_ups=1)  # fmt: skip
    hypervisor.keep_standby(IMAGE, 1)
    try:
        with_spare = lambda work: lambda: spared(hypervisor, work)  # noqa: E731
        bench.in_turns(
            "run, a standby machine", ours=with_spare(ours), peer=peer, what=what, rounds=8, warm_ups=1
        )
        bench.in_turns("run from Python, standby", ours=with_spare(lambda: python(hypervisor)), peer=None,
                       what=("hv.run(), to an answered ping", ""), rounds=8, warm_ups=1)  # fmt: skip
    finally:
        hypervisor.keep_standby(IMAGE, 0)


def ours() -> float:
    started = time.perf_counter()
    run_bough("run", IMAGE, "--", "true")
    taken = time.perf_counter() - started
    settle()
    return taken


def settle() -> None:
    """Wait until the machine of the last run is deleted, before the peer's turn."""
    home = bough.connect().home
    deadline = time.monotonic() + GONE_TIMEOUT_S
    while any(home.incoming.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(AT_EASE_S)


def python(hypervisor: bough.Hypervisor) -> float:
    started = time.perf_counter()
    machine = hypervisor.run(IMAGE)
    machine.ping()
    taken = time.perf_counter() - started
    machine.delete(force=True)
    time.sleep(AT_EASE_S)
    return taken


def spared(hypervisor: bough.Hypervisor, work: object) -> float:
    """Time `work` alone, once a standby machine is ready."""
    wait_for_standby(hypervisor)
    assert callable(work)
    started = time.perf_counter()
    own = work()
    return own if isinstance(own, float) else time.perf_counter() - started


def container() -> Callable[[], object]:
    if not (ROOT / "bin").exists():
        shutil.rmtree(ROOT, ignore_errors=True)
        ROOT.parent.mkdir(parents=True, exist_ok=True)
        run_quietly("mmdebstrap", "--variant=minbase", "bookworm", ROOT)
    # crun refuses hosts with both versions of control groups. The default limits may exceed this process's.
    runtime = ["--runtime=runc"] if shutil.which("runc") else []
    limits = ["--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024"]
    command = ["podman", *runtime, "run", "--rm", "--network=none", *limits, "--rootfs", str(ROOT), "true"]
    return lambda: subprocess.run(command, capture_output=True, check=True)
