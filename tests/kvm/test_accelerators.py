"""Two accelerators on one host: a memory belongs to one of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import bough
from bough.errors import BadBundle, HostLacks
from bough.paths import Home
from tests.kvm.conftest import IS_INSIDE
from tests.kvm.patience import connect

KVM = Path("/dev/kvm")


@pytest.fixture
def no_kvm() -> Iterator[None]:
    """Take the device away from all users."""
    if not IS_INSIDE or os.geteuid() != 0:
        pytest.skip("changes /dev/kvm, so it runs only as root in the outer machine")
    mode = KVM.stat().st_mode
    KVM.chmod(0)
    yield
    KVM.chmod(mode)


def _names(hv: bough.Hypervisor) -> list[str]:
    return sorted(machine.name for machine in hv.machines())


def _traces(home: Home) -> set[str]:
    return {str(path) for place in (home.machines, home.snapshots, home.incoming) for path in place.iterdir()}


def test_memory_of_an_emulated_machine_is_refused(
    hv: bough.Hypervisor,
    small: str,
    hardware: dict[str, Any],
    gone: list[bough.Machine],
    bough_home: Home,
    tmp_path: Path,
) -> None:
    machine = hv.create(small, name="emulated", **hardware | {"accelerator": "tcg"})
    gone.append(machine)
    machine.start()
    assert machine.info().accelerator == "tcg"
    machine.export(tmp_path / "emulated.bough")
    machine.delete(force=True)
    gone.clear()
    before = _traces(bough_home)
    with pytest.raises(BadBundle, match="emulated") as raised:
        hv.import_bundle(tmp_path / "emulated.bough")
    assert "--cold" in (raised.value.hint or "")
    assert _traces(bough_home) == before
    cold = hv.import_bundle(tmp_path / "emulated.bough", cold=True)
    gone.append(cold)
    assert cold.state == "stopped"


@pytest.mark.users("root")
def test_memory_of_a_kvm_machine_is_refused_without_kvm(
    hv: bough.Hypervisor,
    booted: bough.Snapshot,
    fork: bough.Machine,
    bough_home: Home,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    """And what is missing is told with the command."""
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


@pytest.mark.users("root")
def test_a_machine_that_falls_back_says_so(
    hv: bough.Hypervisor, small: str, no_kvm: None, gone: list[bough.Machine]
) -> None:
    """`auto` emulates the machine, and says why on the terminal and in `info`. When KVM is back, forks of the
    machine continue emulated, because their memory does.
    """
    machine = hv.create(small, name="slow", vcpus=1, memory="256MiB")
    gone.append(machine)
    told: list[str] = []
    machine.start(progress=lambda progress: told.append(progress.step))
    assert machine.info().accelerator == "tcg"
    assert "/dev/kvm" in (machine.info().accelerator_note or "")
    assert any("/dev/kvm" in text for text in told), told
    snapshot = machine.snapshot()
    KVM.chmod(0o660)
    child = snapshot.fork()
    gone.append(child)
    assert child.exec("true").ok
    assert child.info().accelerator == "tcg"
    assert "saved on tcg" in (child.info().accelerator_note or "")
