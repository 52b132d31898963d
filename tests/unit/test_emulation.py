"""What only emulated guests need."""

from __future__ import annotations

import pytest

from bough.qemu.emulation import gives_way


@pytest.mark.parametrize(("accelerator", "expected"), [("tcg", True), ("kvm", False), (None, True)])
def test_only_emulated_forks_give_way(accelerator: str | None, expected: bool) -> None:
    assert gives_way(accelerator) is expected
