"""Booted guests with other inits than systemd: one boot each, one fork per test."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import bough
from bough.guest.install import starter_file
from bough.guest.start_files import start_files
from bough.images.note import ExportNote, write_note
from bough.paths import Home
from tests.acceptance.conftest import cli
from tests.conftest import RUN
from tests.guests.disks import INITS, GuestDisk, give_agent_disks, guest_disk, keep_agent_disks

__all__ = ["cli"]

#: One of them runs in each `make test`. The other ones have their own kernels, and take minutes to make.
GUESTS = [
    pytest.param("alpine"),
    *(pytest.param(name, marks=pytest.mark.long) for name in INITS if name != "alpine"),
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
    tmp_path_factory: pytest.TempPathFactory,
) -> bough.Snapshot:
    """Return a snapshot of the booted guest."""
    store = request.config.stash[RUN].images
    with store.alone():
        give_agent_disks(bough_home, store.root)
    label = f"{guest}-guest"
    hv.import_image(make_import(disk, tmp_path_factory.mktemp(guest)), name=label)
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


def make_import(disk: GuestDisk, work: Path) -> Path:
    """Return the guest's disk with the agent's starter, as an export of bough with a note."""
    raw, qcow2 = work / "disk.raw", work / "disk.qcow2"
    subprocess.run(["cp", "--sparse=always", "--reflink=auto", disk.disk, raw], check=True)
    _install_starter(raw, disk.init, work)
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", raw, qcow2], check=True)
    write_note(qcow2, ExportNote(agent=True, agent_disk=True))
    raw.unlink()
    return qcow2


def _install_starter(disk: Path, init: str, work: Path) -> None:
    inittab = _debugfs(disk, "cat /etc/inittab")
    start = start_files(init, inittab or None)
    assert start is not None
    files = (starter_file(), *start.files)
    commands = ["mkdir /.bough"]
    for number, file in enumerate(files):
        source = work / f"file-{number}"
        source.write_bytes(file.content)
        commands += _directories(file.path)
        commands += [
            f"rm {file.path}",
            f"write {source} {file.path}",
            f"sif {file.path} mode 0100{file.mode:o}",
        ]
        commands += [f"sif {file.path} {owner} 0" for owner in ("uid", "gid")]
    for link in start.links:
        commands += [*_directories(link.path), f"symlink {link.path} {link.target}"]
    script = work / "commands"
    script.write_text("\n".join(commands) + "\n")
    subprocess.run(["debugfs", "-w", "-f", script, disk], check=True, capture_output=True, env=_ENVIRONMENT)


_ENVIRONMENT = {**os.environ, "PATH": f"/usr/sbin:/sbin:{os.environ['PATH']}"}


def _directories(path: str) -> list[str]:
    """Return the commands for the missing directories above; debugfs leaves existing ones alone."""
    parts = path.split("/")[1:-1]
    return [f"mkdir /{'/'.join(parts[: at + 1])}" for at in range(len(parts))]


def _debugfs(disk: Path, command: str) -> bytes:
    done = subprocess.run(["debugfs", "-R", command, disk], capture_output=True, env=_ENVIRONMENT, check=True)
    return done.stdout
