"""Two accelerators on one host: a memory belongs to one of them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import bough
from bough.client.bundle import import_stream
from bough.errors import BadBundle, HostLacks
from bough.paths import Home
from tests.kvm.conftest import IS_INSIDE
from tests.kvm.patience import BOOT_S, connect
from tests.kvm.prepare import MEMORY

KVM = Path("/dev/kvm")
_MAY_CLOSE = IS_INSIDE and os.geteuid() == 0
#: QEMU 7.2's model with the most features: the processor of the outer machine lacks some.
_TOO_NEW = "EPYC-Milan"


@contextmanager
def closed_kvm() -> Iterator[None]:
    """Take the device away from all users."""
    mode = KVM.stat().st_mode
    KVM.chmod(0)
    try:
        yield
    finally:
        KVM.chmod(mode)


@pytest.fixture
def no_kvm() -> Iterator[None]:
    if not _MAY_CLOSE:
        pytest.skip("changes /dev/kvm, so it runs only as root in the outer machine")
    with closed_kvm():
        yield


def _traces(home: Home) -> set[str]:
    return {str(path) for place in (home.machines, home.snapshots, home.incoming) for path in place.iterdir()}


@dataclass(frozen=True)
class Emulated:
    """An emulated machine on a host with KVM. `told`: notices of its start."""

    machine: bough.Machine
    told: list[str]


@pytest.fixture(scope="module")
def emulated(hv: bough.Hypervisor, small: str) -> Iterator[Emulated]:
    """Yield a machine that has fallen back to TCG, while /dev/kvm was closed; elsewhere TCG was asked for.

    The guest has not booted: emulated twice, it would take a quarter of an hour.
    """
    told: list[str] = []

    def listen(progress: Any) -> None:
        if progress.notice:
            told.append(progress.step)

    spec: dict[str, Any] = {"name": "slow", "vcpus": 1, "memory": MEMORY}
    if _MAY_CLOSE:
        with closed_kvm():
            machine = hv.create(small, **spec)
            machine.start(wait=False, progress=listen)
    else:
        machine = hv.create(small, accelerator="tcg", **spec)
        machine.start(wait=False, progress=listen)
    yield Emulated(machine, told)
    machine.discard()


@pytest.mark.users("root")
def test_a_machine_that_falls_back_says_so(emulated: Emulated) -> None:
    """`auto` emulates the machine. The terminal and `info` give the reason."""
    if not _MAY_CLOSE:
        pytest.skip("changes /dev/kvm, so it runs only as root in the outer machine")
    info = emulated.machine.info()
    print(emulated.told)
    assert info.accelerator == "tcg"
    assert emulated.told == [info.accelerator_note]
    assert "/dev/kvm" in emulated.told[0]
    argv = [sys.executable, "-m", "bough", "info", "slow"]
    shown = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    assert "/dev/kvm" in shown


@pytest.mark.users("root")
def test_memory_of_an_emulated_machine_is_refused(
    hv: bough.Hypervisor, emulated: Emulated, gone: list[bough.Machine], bough_home: Home, tmp_path: Path
) -> None:
    """KVM is there (again). A suspended machine continues emulated, because its memory does. Its bundle is
    refused.
    """
    machine = emulated.machine
    machine.suspend()
    machine.resume(wait=False)
    assert machine.info().accelerator == "tcg"
    machine.export(tmp_path / "emulated.bough")
    before = _traces(bough_home)
    with pytest.raises(BadBundle, match="emulated") as raised:
        hv.import_bundle(tmp_path / "emulated.bough", name="refused")
    print(raised.value, raised.value.hint)
    assert "--cold" in (raised.value.hint or "")
    assert _traces(bough_home) == before
    cold = hv.import_bundle(tmp_path / "emulated.bough", cold=True, name="cold")
    gone.append(cold)
    assert cold.state == "stopped"
    with (tmp_path / "emulated.bough").open("rb") as stream:
        import_stream(hv.api, stream, name="slow-again", accelerator="tcg", wait=False)
    slow = hv.machine("slow-again")
    gone.append(slow)
    assert (slow.state, slow.info().accelerator) == ("running", "tcg")


@pytest.mark.users("root")
def test_a_machine_made_without_kvm_boots_on_kvm(
    hv: bough.Hypervisor, small: str, gone: list[bough.Machine]
) -> None:
    """With a CPU for KVM: the guest of an emulated CPU leaves out workarounds that a real one needs."""
    if not _MAY_CLOSE:
        pytest.skip("changes /dev/kvm, so it runs only as root in the outer machine")
    with closed_kvm():
        machine = hv.create(small, name="later", vcpus=1, memory=MEMORY)
        gone.append(machine)
        assert "emulated" in machine.info().hardware["cpu_model"]
    machine.start(timeout=BOOT_S)
    info = machine.info()
    assert (info.accelerator, info.accelerator_note) == ("kvm", None)
    assert "emulated" not in info.hardware["cpu_model"]
    child = machine.fork()
    gone.append(child)
    assert child.exec("true").ok


@pytest.mark.users("root")
def test_memory_of_a_cpu_with_more_features_is_refused(
    hv: bough.Hypervisor,
    small: str,
    hardware: dict[str, Any],
    gone: list[bough.Machine],
    bough_home: Home,
    tmp_path: Path,
) -> None:
    kvm = next(each for each in hv.doctor()["accelerators"] if each["name"] == "kvm")
    print(kvm["cpu_model"], kvm["cpu_models"])
    if _TOO_NEW in kvm["cpu_models"]:
        pytest.skip(f"this host's processor has all features of {_TOO_NEW}")
    machine = hv.create(small, name="newer", **hardware, cpu=_TOO_NEW)
    gone.append(machine)
    machine.start(timeout=BOOT_S)
    machine.export(tmp_path / "newer.bough")
    machine.delete(force=True)
    gone.clear()
    before = _traces(bough_home)
    with pytest.raises(BadBundle, match="lacks features") as raised:
        hv.import_bundle(tmp_path / "newer.bough")
    print(raised.value, raised.value.hint)
    assert "--cold" in (raised.value.hint or "")
    assert _traces(bough_home) == before


@pytest.mark.users("root")
def test_memory_of_a_kvm_machine_is_refused_without_kvm(
    hv: bough.Hypervisor,
    booted: bough.Snapshot,
    fork: bough.Machine,
    bough_home: Home,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    """A bundle, and a fork. And what is missing is told with the command."""
    fork.export(tmp_path / "real.bough")
    request.getfixturevalue("no_kvm")
    before = _traces(bough_home)
    with pytest.raises(BadBundle, match="kvm") as raised:
        hv.import_bundle(tmp_path / "real.bough", name="again")
    assert "--cold" in (raised.value.hint or "")
    assert _traces(bough_home) == before
    check = next(check for check in hv.doctor()["checks"] if check["name"] == "KVM")
    assert not check["ok"]
    assert "/dev/kvm" in check["fixes"]["any"]
    hv.shutdown()  # and with it a fork that was begun in advance, on KVM
    hv = connect()
    before = _traces(bough_home)
    with pytest.raises(HostLacks, match="saved on kvm") as lacking:
        hv.snapshot(booted.id).fork()
    assert "--cold" in (lacking.value.hint or "")
    assert _traces(bough_home) == before
