"""Booted guests with other inits than systemd: one boot each, one fork per test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import bough
from bough.paths import Home
from tests.acceptance.conftest import cli
from tests.conftest import RUN
from tests.guests.disks import NAMES, GuestDisk, give_agent_disks, guest_disk, keep_agent_disks

__all__ = ["cli"]

#: One of them runs in each `make test`. The other ones have their own kernels, and take minutes to make.
GUESTS = [
    pytest.param("alpine"),
    *(pytest.param(name, marks=pytest.mark.long) for name in NAMES if name != "alpine"),
]
MEMORY = "256MiB"
SETUP = {
    "users": [{"name": "dev", "groups": ["friends"], "ssh_keys": ["ssh-ed25519 AAAA test"]}],
    "environment": {"GREETING": "hello"},
    "files": [{"path": "/root/done", "content": "hello\n"}],
    "commands": ["echo done >>/root/done"],
}


@pytest.fixture(scope="session", params=GUESTS)
def guest(request: pytest.FixtureRequest) -> str:
    """Return the name of a guest."""
    name: str = request.param
    return name


@pytest.fixture(scope="session")
def disk(guest: str, request: pytest.FixtureRequest) -> GuestDisk:
    store = request.config.stash[RUN].images
    with store.alone():
        return guest_disk(guest, store.root)


@pytest.fixture(scope="session")
def first(
    hv: bough.Hypervisor,
    guest: str,
    disk: GuestDisk,
    bough_home: Home,
    request: pytest.FixtureRequest,
) -> bough.Snapshot:
    """Return a snapshot of the booted guest, whose disk was imported."""
    store = request.config.stash[RUN].images
    with store.alone():
        give_agent_disks(bough_home, store.root)
    label = f"{guest}-guest"
    hv.import_image(disk.disk, name=label)
    machine = hv.create(label, name=f"{guest}-first", memory=MEMORY, **disk.spec, **SETUP)
    machine.start()
    with store.alone():
        keep_agent_disks(bough_home, store.root)
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
