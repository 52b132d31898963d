"""The whole Debian image on KVM: boot, network, and `bough run`'s booted snapshot."""

from __future__ import annotations

import time
from typing import Any

import bough


def test_debian(hv: bough.Hypervisor, debian: str, hardware: dict[str, Any]) -> None:
    spec = hardware | {"memory": "512MiB"}
    began = time.monotonic()
    with hv.run(debian, **spec) as machine:
        print(f"first run: {time.monotonic() - began:.0f} s")
        assert machine.info().accelerator == "kvm"
        assert machine.exec("systemctl", "is-active", "bough-agent.service").stdout.strip() == "active"
        assert "inet " in machine.shell("ip -4 addr show scope global").stdout
    began = time.monotonic()
    with hv.run(debian, **spec) as machine:
        print(f"second run: {time.monotonic() - began:.0f} s")
        assert machine.exec("true").ok
