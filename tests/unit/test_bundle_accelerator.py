"""On which hosts the memory of a bundle can continue."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bough.qemu.accelerators import Accelerator
from bough.snapshots.memory_fit import accelerator_bar, cpu_bar, render_instead

TCG = Accelerator("tcg", True, "ran", "EPYC,vendor=GenuineIntel")
KVM = Accelerator("kvm", True, "ran", "EPYC-Rome", ("EPYC", "EPYC-Rome", "host"))
NO_KVM = Accelerator("kvm", False, "/dev/kvm is missing", "")
WITH = {"kvm": KVM, "tcg": TCG}
WITHOUT = {"kvm": NO_KVM, "tcg": TCG}


@pytest.mark.parametrize(
    ("its", "host", "wanted", "bar"),
    [
        pytest.param("kvm", WITH, "auto", None, id="KVM to KVM"),
        pytest.param("tcg", WITHOUT, "auto", None, id="TCG to TCG"),
        pytest.param("kvm", WITHOUT, "auto", "does not work here", id="KVM to TCG"),
        pytest.param("tcg", WITH, "auto", "this host has KVM", id="TCG to KVM"),
        pytest.param("tcg", WITH, "tcg", None, id="TCG to KVM, emulated on request"),
        pytest.param("tcg", WITH, "kvm", "cannot continue", id="TCG forced onto KVM"),
        pytest.param("kvm", WITH, "tcg", "cannot continue", id="KVM forced onto TCG"),
    ],
)
def test_memory_stays_on_its_accelerator(
    its: str, host: dict[str, Accelerator], wanted: str, bar: str | None
) -> None:
    found = accelerator_bar(its, host, wanted)
    assert (found is None) == (bar is None)
    assert bar is None or bar in (found or "")


@pytest.mark.parametrize(
    ("its", "model", "bar"),
    [
        pytest.param("kvm", "EPYC", None, id="an older CPU"),
        pytest.param("kvm", "EPYC-Genoa", "lacks features", id="a CPU with more features"),
        pytest.param("kvm", "EPYC-Genoa,svm=off", "lacks features", id="the CPU of auto"),
        pytest.param("kvm", "Skylake-Server,rtm=off", None, id="a changed CPU: unknown"),
        pytest.param("kvm", "host", "exporting host", id="the exporting host's own CPU"),
        pytest.param("kvm", "host,pmu=off", "exporting host", id="nearly the exporting host's own CPU"),
        pytest.param("tcg", "EPYC-Genoa", None, id="emulated"),
    ],
)
def test_memory_needs_its_cpu(its: str, model: str, bar: str | None) -> None:
    found = cpu_bar(its, model, WITH)
    assert (found is None) == (bar is None)
    assert bar is None or bar in (found or "")
    unknown = {"kvm": replace(KVM, cpu_models=()), "tcg": TCG}
    assert cpu_bar(its, model, unknown) is None


def test_the_hint_names_what_works() -> None:
    assert "--accelerator tcg" in render_instead("tcg", WITH)
    assert render_instead("kvm", WITHOUT) == "import only its disks, and boot: --cold"
