"""Machines from a container image: first boot, `bough run` against `podman run`, forks and their memory."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from statistics import median

from tests.container_registry import Images, has_registry, serve_registry

import bough
from bench.harness import Bench
from bench.idle_forks import measure_forks
from bench.machine import AT_EASE_S, run_bough, wait_for_prewarm
from bench.oci import debian_tar
from bench.run import container, settle

ABOUT = "machines from a container image of a Debian, against podman run"
#: Of the machines that are forked.
MEMORY = "256MiB"
_BOOTS, _ROUNDS = 3, 8


def run(bench: Bench) -> None:
    if not has_registry():
        bench.note("containers: skopeo or docker-registry is not installed")
        return
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="bough-bench-") as place:
        with serve_registry(Path(place) / "registry") as registry:
            images = Images()
            images.image([debian_tar().read_bytes()], {"Cmd": ["sleep", "infinity"]}, name="debian")
            registry.push(images, "bench")
            label = f"docker://{registry.host}/bench:debian"
            run_bough("image", "pull", label)
        try:
            _measure(bench, bough.connect(), label)
        finally:
            settle()
            run_bough("image", "delete", label)


def _measure(bench: Bench, hypervisor: bough.Hypervisor, label: str) -> None:
    boots = [_boot_s(hypervisor, label) for _ in range(_BOOTS)]
    bench.note(f"first boot, to the agent's answer: {median(boots):.1f} s (at most 4 s)")

    def ours() -> float:
        began = time.perf_counter()
        run_bough("run", label, "--", "true")
        taken = time.perf_counter() - began
        settle()
        return taken

    ours()  # boots the image
    wait_for_prewarm(hypervisor)
    what = ("bough run IMAGE -- true (at most 1.0)", "podman run --rm --rootfs ROOT true")
    bench.in_turns("run", ours=ours, peer=container(), what=what, rounds=_ROUNDS, warm_ups=1)
    machine = hypervisor.run(label, name="bench-containers", memory=MEMORY)
    try:
        snapshot = machine.snapshot()
    finally:
        machine.delete(force=True)
    try:
        wait_for_prewarm(hypervisor)
        measure_forks(bench, snapshot)
    finally:
        snapshot.delete()


def _boot_s(hypervisor: bough.Hypervisor, label: str) -> float:
    """Return the seconds of a machine's first boot, until the agent answers."""
    machine = hypervisor.create(label, name="bench-containers", memory=MEMORY)
    try:
        began = time.perf_counter()
        machine.start(wait=False)
        while machine.info().agent != "answering":
            time.sleep(0.02)
        return time.perf_counter() - began
    finally:
        machine.delete(force=True)
        time.sleep(AT_EASE_S)
