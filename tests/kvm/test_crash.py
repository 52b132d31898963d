"""QEMU or the service killed at some moment of a snapshot or a fork: nothing acknowledged is lost."""

from __future__ import annotations

import contextlib
import itertools
import random
import threading
import time
from collections.abc import Callable

import pytest

import bough
from bough.errors import BoughError, NotFound
from bough.paths import Home
from bough.qemu.accelerators import Accelerator
from tests.kvm.autopsy import describe_guests, is_fault_of_the_emulation
from tests.kvm.conftest import IS_INSIDE
from tests.kvm.patience import BOOT_S, connect
from tests.torture.processes import kill, qemus, service_pid
from tests.waiting import wait_until

_MOMENTS = 5
_SEEDS = (1, 2, 3, 4)  # 4 x 5 moments
#: Longest time until the kill: an operation takes a few seconds where KVM is emulated.
_LATEST_S = {True: 8.0, False: 0.5}


class Scene:
    """A machine that is snapshotted and forked while processes are killed.

    Attributes:
        written: number of the last word that the guest has acknowledged as on its disk.
    """

    def __init__(self, home: Home, machine: bough.Machine) -> None:
        self.home = home
        self.machine = machine
        self.written = 0

    def write(self) -> None:
        number = self.written + 1
        self.machine.shell(f"echo {number} > /disk/word && sync", check=True)
        self.written = number

    def snapshot(self) -> None:
        self.machine.snapshot(f"moment-{self.written}")

    def fork(self) -> None:
        self.machine.fork(f"child-{self.written}")

    def kill(self, victim: str) -> bool:
        """Kill the victim. Return whether the machine has lost its QEMU."""
        if victim == "service":
            kill(service_pid(self.home))
            return False
        return kill(qemus(self.home).get(self.machine.id, 0))

    def check(self, died: bool) -> None:
        try:
            self._check(died)
        except (BoughError, AssertionError):
            report = describe_guests(self.home)
            print(report, flush=True)
            if IS_INSIDE and is_fault_of_the_emulation(report):
                pytest.xfail("the emulated processor has mixed the guest's registers with its own")
            raise

    def _check(self, died: bool) -> None:
        hv = connect()
        self.machine = hv.machine(self.machine.id)
        state = "failed" if died else "running"
        wait_until(lambda: self.machine.state == state, timeout_s=300, what=f"it is {state}")
        began = time.monotonic()
        if died:
            self.machine.start(timeout=BOOT_S)
        else:
            self.machine.wait(timeout=600)
        print(f"answers after {time.monotonic() - began:.1f} s", flush=True)
        assert int(self.machine.read_text("/disk/word")) >= self.written
        for name in (f"child-{self.written}", None):
            self._check_fork(hv, name)
        assert not [path for path in self.home.incoming.iterdir() if path.name.startswith(self.machine.id)]

    def _check_fork(self, hv: bough.Hypervisor, name: str | None) -> None:
        """Check the fork that was being made, or a fork of the snapshot that was being taken."""
        try:
            child = hv.machine(name) if name else hv.snapshot(f"moment-{self.written}").fork()
        except NotFound:
            return
        if child.state == "running":
            child.wait(timeout=600)
            assert int(child.read_text("/disk/word")) == self.written
        child.discard()


@pytest.mark.parametrize("seed", _SEEDS)
def test_kills(fork: bough.Machine, bough_home: Home, seed: int) -> None:
    chance = random.Random(seed)
    scene = Scene(bough_home, fork)
    kinds = itertools.cycle(itertools.product(("snapshot", "fork"), ("service", "qemu")))
    latest_s = _LATEST_S[_is_slow(scene)]
    for (kind, victim), _ in zip(kinds, range(_MOMENTS), strict=False):
        scene.write()
        after_s = chance.uniform(0, latest_s)
        print(f"{kind}, {victim} killed after {after_s:.2f} s", flush=True)
        thread = threading.Thread(target=_perform, args=(getattr(scene, kind),))
        thread.start()
        time.sleep(after_s)
        died = scene.kill(victim)
        thread.join(600)
        assert not thread.is_alive(), "the operation did not end"
        scene.check(died)


def test_the_store_is_whole_after_all_kills(kvm: Accelerator) -> None:
    """Once, because the check reads whole images."""
    assert connect().doctor_store()["clean"]


def _perform(operation: Callable[[], None]) -> None:
    with contextlib.suppress(BoughError, OSError):
        operation()


def _is_slow(scene: Scene) -> bool:
    began = time.monotonic()
    scene.write()
    return time.monotonic() - began > 0.1
