"""Disks from elsewhere come back as machines with an agent: a foreign Debian, and a copy of an export."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import bough
from bough.guest.install import ENABLED_AS, LIBRARY, UNIT_PATH, starter_file
from bough.images.disk import ROOT_OFFSET
from bough.paths import Home
from tests.acceptance.conftest import Cli
from tests.conftest import RUN
from tests.linux_disks import MIB, Linux, run

MEMORY = "512MiB"


@pytest.fixture(scope="module")
def copy(
    debian: str, hv: bough.Hypervisor, bough_home: Home, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Return a raw copy of a Debian with bough's agent, as another hypervisor would have it."""
    digest = next(image.digest for image in hv.images() if debian in image.labels)
    target = tmp_path_factory.mktemp("disks") / "copy.raw"
    subprocess.run(["cp", "--sparse=always", bough_home.image(digest).disk, target], check=True)
    target.chmod(0o600)
    return target


@pytest.fixture(scope="module")
def foreign(copy: Path) -> Path:
    """Return a Debian with systemd and without bough's agent, as a qcow2."""
    raw, target = copy.with_name("foreign.raw"), copy.with_name("foreign.qcow2")
    subprocess.run(["cp", "--sparse=always", copy, raw], check=True)
    own = (ENABLED_AS, UNIT_PATH, f"{LIBRARY}/bough/guest/agent.py", f"{LIBRARY}/bough/guest/wire.py")
    script = "".join(f"rm {path}\n" for path in own)
    run("debugfs", "-w", "-f", "-", f"{raw}?offset={ROOT_OFFSET}", text=script)
    run("qemu-img", "convert", "-O", "qcow2", raw, target)
    raw.unlink()
    return target


@pytest.fixture(scope="module")
def labels(hv: bough.Hypervisor) -> Iterator[list[str]]:
    names: list[str] = []
    yield names
    for name in names:
        hv.delete_image(name)


def test_a_copy_of_an_export_without_its_note(cli: Cli, copy: Path, labels: list[str]) -> None:
    labels.append("copied")
    image = cli.json("image", "import", copy, "--name", "copied")
    assert (image["agent"], image["lived"], image["os"], image["version"]) == (
        "installed",
        True,
        "debian",
        "12",
    )
    assert (image["linux"]["init"], image["linux"]["root"], image["notes"]) == ("systemd", "3", [])


def test_a_foreign_debian(
    cli: Cli,
    hv: bough.Hypervisor,
    foreign: Path,
    labels: list[str],
    bough_home: Home,
    request: pytest.FixtureRequest,
) -> None:
    """The agent comes from the agent disk, the root grows, and machine and fork get their own identity."""
    store = request.config.stash[RUN].images
    with store.alone():
        store.share_agent_disks(bough_home)
    labels.append("foreign")
    before = foreign.stat().st_mtime_ns
    image = cli.json("image", "import", foreign, "--name", "foreign")
    assert foreign.stat().st_mtime_ns == before
    assert (image["agent"], image["lived"], image["notes"]) == ("disk", True, [])
    machine = hv.create("foreign", name="foreign", memory=MEMORY, disk="10GiB")
    try:
        machine.start()
        with store.alone():
            store.share_agent_disks(bough_home)
        assert machine.exec("hostname").stdout.strip() == "foreign"
        assert "/.bough" in machine.exec("mount").stdout
        size_kib = machine.exec("df", "-k", "--output=size", "/").stdout.split()[-1]
        assert int(size_kib) > 9 * 1024 * 1024
        machine.write_file("/root/word", "kept")
        own = machine.read_text("/etc/machine-id")
        fork = machine.snapshot("foreign-snapshot").fork(name="foreign-fork")
        try:
            assert fork.exec("hostname").stdout.strip() == "foreign-fork"
            assert fork.read_text("/etc/machine-id") != own
            assert fork.read_text("/root/word") == "kept"
        finally:
            fork.delete(force=True)
    finally:
        machine.delete(force=True)
        hv.snapshot("foreign-snapshot").delete()


def test_without_the_agent(cli: Cli, foreign: Path, labels: list[str]) -> None:
    labels.append("plain")
    image = cli.json("image", "import", foreign, "--name", "plain", "--no-agent")
    assert (image["agent"], image["lived"]) == (None, False)


def test_words_for_disks_that_get_no_agent(cli: Cli, tmp_path: Path, labels: list[str]) -> None:
    disk = tmp_path / "locked.raw"
    with disk.open("wb") as stream:
        stream.truncate(8 << 20)
        stream.write(b"LUKS\xba\xbe\0\2")
    labels.append("locked")
    told = cli("image", "import", disk, "--format", "raw", "--name", "locked").stderr.decode()
    assert "note: the disk is encrypted: the whole disk (LUKS)" in told
    assert "bough console NAME" in told
    cli.error("image", "import", disk, "--format", "raw", "--root", "2", says="no partition '2'")


@pytest.mark.long
@pytest.mark.parametrize("kind", ["xfs", "btrfs"])
def test_a_file_system_that_only_a_guest_writes(
    cli: Cli,
    debian: str,
    kind: str,
    tmp_path: Path,
    labels: list[str],
    bough_home: Home,
    request: pytest.FixtureRequest,
) -> None:
    """A throw-away guest reads the root and writes the starter."""
    if shutil.which(f"mkfs.{kind}", path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None:
        pytest.skip(f"no mkfs.{kind} on this host")
    store = request.config.stash[RUN].images
    with store.alone():
        store.share_agent_disks(bough_home)
    volume, disk = tmp_path / "volume", tmp_path / "disk.raw"
    with volume.open("wb") as stream:
        stream.truncate(320 * MIB)
    tree = Linux(init="openrc").write(tmp_path / "tree")
    if kind == "btrfs":
        run("mkfs.btrfs", "-q", "--rootdir", tree, volume)
    else:
        (tmp_path / "prototype").write_text("/none\n0 0\nd--755 0 0\n" + _prototype(tree) + "$\n")
        run("mkfs.xfs", "-q", "-p", tmp_path / "prototype", volume)
    with disk.open("wb") as stream:
        stream.truncate(322 * MIB)
    script = "label: gpt\nstart=2048, size=655360, type=linux\n"
    run("sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", disk, text=script)
    run("dd", f"if={volume}", f"of={disk}", "bs=1M", "seek=1", "conv=notrunc,sparse", "status=none")
    labels.append(kind)
    image = cli.json("image", "import", disk, "--name", kind)
    with store.alone():
        store.share_agent_disks(bough_home)
    assert (image["agent"], image["notes"]) == ("disk", [])
    assert (image["linux"]["init"], image["linux"]["file_system"]) == ("openrc", kind)
    assert starter_file().content in bough_home.image(image["digest"]).disk.read_bytes()


def _prototype(directory: Path) -> str:
    """Describe a directory for mkfs.xfs."""
    lines = []
    for path in sorted(directory.iterdir()):
        if path.is_symlink():
            lines.append(f"{path.name} l--777 0 0 {path.readlink()}\n")
        elif path.is_dir():
            lines.append(f"{path.name} d--755 0 0\n{_prototype(path)}$\n")
        else:
            lines.append(f"{path.name} ---755 0 0 {path}\n")
    return "".join(lines)
