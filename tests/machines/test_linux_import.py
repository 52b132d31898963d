# ruff: noqa: ASYNC221 (nothing else runs in these loops)
"""Imports of disks with a Linux, by the real programs in the real jail. No machine is started."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bough.errors import InvalidInput
from bough.guest.install import STARTER_PATH, starter_file
from bough.images.confined import Confinement
from bough.images.import_request import ImportRequest
from bough.images.imports import import_image
from bough.images.linux_disk.changes import ChangeFailed
from bough.images.store import ImageManifest, ImageStore
from bough.machines.plan import host_arch
from bough.paths import Home
from bough.progress import Progress
from bough.qemu.binary import find_qemu
from bough.qemu.jail_probe import probe_jail
from tests.linux_disks import MIB, Linux, check, make_disk, make_file_system, read_file, run

ALPINE = 'ID=alpine\nVERSION_ID=3.23.0\nPRETTY_NAME="Alpine Linux v3.23"\n'


@pytest.fixture
def place() -> Iterator[Path]:
    """Yield a directory outside of pytest's tmp_path, which the user in the jail cannot enter."""
    root = Path(tempfile.mkdtemp(prefix="bough-linux-", dir="/var/tmp"))
    root.chmod(0o711)
    yield root
    shutil.rmtree(root)


class Importer:
    def __init__(self, home: Home, confinement: Confinement) -> None:
        self.store = ImageStore(home)
        self.confinement = confinement
        self.told: list[Progress] = []

    async def __call__(self, source: Path, **more: Any) -> ImageManifest:
        """Import a file, which stays as it is. Nothing half-made is left."""
        before = hashlib.sha256(source.read_bytes()).digest()
        request = replace(ImportRequest(str(source), host_arch()), **more)
        try:
            return await import_image(self.store, request, self.confinement, self.told.append)
        finally:
            assert hashlib.sha256(source.read_bytes()).digest() == before
            assert list(self.store.home.incoming.iterdir()) == []

    @property
    def notices(self) -> list[str]:
        return [step.step for step in self.told if step.notice]


@pytest.fixture
async def take(place: Path) -> Importer:
    root = place / "home"
    root.mkdir(mode=0o711)
    home = Home.at(root)
    home.create()
    return Importer(home, Confinement(await probe_jail(find_qemu(host_arch()), home)))


@pytest.mark.parametrize("init", ["systemd", "openrc", "sysvinit", "busybox", "runit"])
async def test_the_starter_is_installed(take: Importer, place: Path, init: str) -> None:
    offset = make_disk(place / "web.raw", Linux(init=init, release=ALPINE).write(place / "tree"))
    manifest = await take(place / "web.raw")
    assert (manifest.agent, manifest.lived, manifest.os, manifest.version) == (
        "disk",
        True,
        "alpine",
        "3.23.0",
    )
    assert (manifest.disk_bus, manifest.nic_model, manifest.agent_port) == ("virtio", "virtio", "virtio")
    assert manifest.linux is not None
    assert (manifest.linux.init, manifest.linux.root, manifest.linux.file_system) == (init, "1", "ext4")
    assert (manifest.notes, take.notices) == ((), [])
    disk = take.store.path(manifest.digest)
    assert read_file(disk, offset, STARTER_PATH) == starter_file().content.decode()
    check(disk, offset)


async def test_the_same_disk_in_another_format_has_the_same_digest(take: Importer, place: Path) -> None:
    make_disk(place / "web.raw", Linux().write(place / "tree"))
    run("qemu-img", "convert", "-O", "qcow2", place / "web.raw", place / "web.qcow2")
    assert (await take(place / "web.raw")).digest == (await take(place / "web.qcow2")).digest


async def test_no_agent_leaves_the_disk_alone(take: Importer, place: Path) -> None:
    make_disk(place / "web.raw", Linux().write(place / "tree"))
    for more in ({"agent": False}, {"cloud_init": True}):
        manifest = await take(place / "web.raw", **more)
        assert (manifest.agent, manifest.lived, take.notices) == (None, False, [])
        assert manifest.linux is not None
        same = ["cmp", place / "web.raw", take.store.path(manifest.digest)]
        assert subprocess.run(same, check=False).returncode == 0


async def test_hardware_that_the_initrd_knows(take: Importer, place: Path) -> None:
    linux = Linux(builtin=("ahci", "sd_mod"), modules=("squashfs", "e1000"), initrd=None)
    make_disk(place / "old.raw", linux.write(place / "tree"))
    manifest = await take(place / "old.raw")
    assert (manifest.disk_bus, manifest.nic_model, manifest.agent_port) == ("sata", "e1000", "serial")
    chosen = await take(place / "old.raw", disk_bus="scsi", nic_model="virtio", agent_port="virtio")
    assert (chosen.disk_bus, chosen.nic_model, chosen.agent_port) == ("scsi", "virtio", "virtio")


async def test_two_linuxes(take: Importer, place: Path) -> None:
    disk = place / "two.raw"
    with disk.open("wb") as stream:
        stream.truncate(52 * MIB)
    script = "label: gpt\nstart=2048, size=49152, type=linux\nstart=51200, size=49152, type=linux\n"
    run("sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", disk, text=script)
    make_file_system(disk, Linux().write(place / "one"), MIB)
    make_file_system(disk, Linux(init="openrc", release=ALPINE).write(place / "other"), 25 * MIB)
    manifest = await take(disk)
    assert (manifest.agent, manifest.linux) == (None, None)
    assert (
        "Debian GNU/Linux 12 (bookworm) in partition 1; Alpine Linux v3.23 in partition 2" in take.notices[0]
    )
    assert "--root 1" in take.notices[0]
    assert (await take(disk, root="2")).os == "alpine"
    with pytest.raises(InvalidInput, match="no partition '7'"):
        await take(disk, root="7")


async def test_an_installation_that_fails_leaves_the_disk_as_it_was(
    take: Importer, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bough.images.linux_disk import changes

    async def fail(*_: object) -> None:
        raise ChangeFailed("something failed")

    monkeypatch.setattr(changes, "_verify", fail)
    make_disk(place / "web.raw", Linux().write(place / "tree"))
    manifest = await take(place / "web.raw")
    assert manifest.agent is None
    assert "something failed. The agent is not installed" in take.notices[0]
    same = ["cmp", place / "web.raw", take.store.path(manifest.digest)]
    assert subprocess.run(same, check=False).returncode == 0


async def test_a_disk_without_a_partition_table(take: Importer, place: Path) -> None:
    make_disk(place / "bare.raw", Linux(init="openrc").write(place / "tree"), table="none")
    manifest = await take(place / "bare.raw")
    assert manifest.agent == "disk"
    assert manifest.linux is not None
    assert manifest.linux.root == "disk"
