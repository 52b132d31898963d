"""Compare two systems by the real program in the real jail. No guest is started."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from bough.differences.process import Side, compare
from bough.errors import BoughError, InvalidInput
from bough.images.confined import Confinement
from bough.machines.plan import host_arch
from bough.paths import Home
from bough.progress import Progress
from bough.qemu.binary import find_qemu
from bough.qemu.jail_probe import probe_jail
from tests.linux_disks import MIB, Linux, make_disk, run


@pytest.fixture
def place() -> Iterator[Path]:
    """Yield a directory that the user in the jail cannot enter, as the disks of a machine."""
    root = Path(tempfile.mkdtemp(prefix="bough-diff-", dir="/var/tmp"))
    yield root
    shutil.rmtree(root)


@pytest.fixture
async def confinement(place: Path) -> Confinement:
    home = Home.at(place / "home")
    home.create()
    return Confinement(await probe_jail(find_qemu(host_arch()), home))


def make(place: Path, name: str, files: dict[str, str | bytes]) -> Path:
    disk = place / f"{name}.raw"
    make_disk(disk, Linux(files=files, initrd=None).write(place / f"{name}-tree"))
    disk.chmod(0o600)
    return disk


def ignore(_: Progress) -> None:
    pass


async def test_two_disks(place: Path, confinement: Confinement) -> None:
    """The program reads open files only: its user cannot enter the directory of the disks."""
    before = make(place, "before", {"etc/hosts": "a\n"})
    top = place / "top.qcow2"
    run("qemu-img", "create", "-f", "qcow2", "-b", before, "-F", "raw", top)
    after = make(place, "after", {"etc/hosts": "b\n", "srv/x\x1b[2J": "x"})
    found = await compare(Side("one", [(before,)]), Side("other", [(after,)]), confinement, ignore)
    assert [one["path"] for one in found["configuration"]] == ["/etc/hosts"]
    assert [one["path"] for one in found["files"]["list"]] == ["/srv/x\\x1b[2J"]
    same = await compare(Side("one", [(before,)]), Side("other", [(top, before)]), confinement, ignore)
    assert same["configuration"] == same["files"]["list"] == same["notes"] == []


async def test_disks_that_cannot_be_compared(place: Path, confinement: Confinement) -> None:
    good = Side("image 'good'", [(make(place, "good", {}),)])
    for magic, word in ((b"LUKS\xba\xbe", "encrypted"), (b"\xeb\x52\x90NTFS    ", "Windows"), (b"", "")):
        disk = place / "bad.raw"
        disk.write_bytes(magic.ljust(8 * MIB, b"\0"))
        with pytest.raises(InvalidInput, match="machine 'bad' cannot be compared") as raised:
            await compare(good, Side("machine 'bad'", [(disk,)]), confinement, ignore)
        assert word in (raised.value.hint or "")


async def test_a_disk_that_became_another_file(place: Path, confinement: Confinement) -> None:
    """A guest's QEMU can replace its disk by a link, or by a FIFO."""
    good = Side("good", [(make(place, "good", {}),)])
    (place / "link.qcow2").symlink_to("/etc/passwd")
    os.mkfifo(place / "fifo.qcow2")
    for name in ("link.qcow2", "fifo.qcow2", "missing.qcow2"):
        with pytest.raises(BoughError, match=name):
            await compare(good, Side("bad", [(place / name,)]), confinement, ignore)


@pytest.mark.long
async def test_many_files(place: Path, confinement: Confinement) -> None:
    """200,000 files on each side: progress is told meanwhile."""
    tree = Linux(initrd=None).write(place / "tree")
    for number in range(1000):
        directory = tree / "srv" / str(number)
        directory.mkdir(parents=True)
        for file in range(200):
            (directory / str(file)).symlink_to("x")
    disk = place / "disk.raw"
    size = 1024 * MIB
    disk.write_bytes(b"")
    run("mke2fs", "-q", "-t", "ext4", "-N", "260000", "-d", tree, disk, f"{size // 1024}k")
    told: list[Progress] = []
    copy = place / "copy.raw"
    shutil.copyfile(disk, copy)
    found = await compare(Side("one", [(disk,)]), Side("other", [(copy,)]), confinement, told.append)
    assert found["files"]["list"] == []
    assert len(told) >= 10
