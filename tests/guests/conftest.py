"""Booted guests with other inits than systemd: one boot each, one fork per test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import bough
from bough.paths import Home
from tests.acceptance.conftest import cli
from tests.conftest import RUN
from tests.guests.disks import NAMES, guest_disk

__all__ = ["cli"]

#: One of them runs in each `make test`. The other ones have their own kernels, and take minutes to make.
GUESTS = [
    pytest.param("alpine"),
    *(pytest.param(name, marks=pytest.mark.long) for name in NAMES if name != "alpine"),
]
MEMORY = "256MiB"


@pytest.fixture(scope="session", params=GUESTS)
def guest(request: pytest.FixtureRequest) -> str:
    """Return the name of a guest."""
    name: str = request.param
    return name


@pytest.fixture(scope="session")
def disk(guest: str, request: pytest.FixtureRequest) -> Path:
    store = request.config.stash[RUN].images
    with store.alone():
        return guest_disk(guest, store.root)


@pytest.fixture(scope="session")
def first(
    hv: bough.Hypervisor,
    guest: str,
    disk: Path,
    bough_home: Home,
    ssh_key: Path,
    request: pytest.FixtureRequest,
) -> bough.Snapshot:
    """Return a snapshot of the booted guest, whose disk was imported."""
    store = request.config.stash[RUN].images
    with store.alone():
        store.share_agent_disks(bough_home)
    label = f"{guest}-guest"
    hv.import_image(disk, name=label)
    # QEMU before 8.1 translates code wrongly that one vCPU runs while another vCPU patches it: kernels panic.
    machine = hv.create(label, name=f"{guest}-first", memory=MEMORY, vcpus=1, **_setup(ssh_key))
    machine.start()
    with store.alone():
        store.share_agent_disks(bough_home)
    machine.wait("booted")
    snapshot = machine.snapshot(f"{guest}-booted")
    machine.delete(force=True)
    return snapshot


@pytest.fixture
def fork(first: bough.Snapshot) -> Iterator[bough.Machine]:
    """Yield a running fork for one test, which may change, stop or break it."""
    machine = first.fork()
    yield machine
    machine.discard()


@pytest.fixture(autouse=True)
def _nothing_left(nothing_left: None) -> None:
    pass


def _setup(ssh_key: Path) -> dict[str, Any]:
    """Return the settings of the first boot."""
    keys = [Path(f"{ssh_key}.pub").read_text()]
    return {
        "users": [{"name": "dev", "groups": ["friends"], "ssh_keys": keys}],
        "environment": {"GREETING": "hello"},
        "files": [{"path": "/root/done", "content": "hello\n"}],
        "commands": ["echo done >>/root/done"],
    }
