"""The lines of `bough info`."""

from __future__ import annotations

from bough.cli.observe import _cpu


def test_a_cpu_model_is_shown_by_its_name() -> None:
    assert _cpu("Skylake-Client-v3,vmx=off,pdpe1gb=off") == "Skylake-Client-v3"
    assert _cpu("max") == "max"
