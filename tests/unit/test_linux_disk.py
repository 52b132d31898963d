"""Find a Linux on small real disks. debugfs runs without a jail here: tests/machines has the jail."""

from __future__ import annotations

import lzma
from pathlib import Path

import pytest

from bough.errors import InvalidInput
from bough.images.confined import Confinement
from bough.images.linux_disk.look import Look, look_into
from bough.images.linux_disk.sentences import several_linuxes, without_linux
from bough.qemu.jail import Jail
from tests.linux_disks import MIB, Linux, cpio, elf, make_disk, make_file_system, run

CONFINEMENT = Confinement(Jail(), uid=None)


async def look(disk: Path, wanted: str | None = None) -> Look:
    return await look_into(disk, CONFINEMENT, disk.parent, wanted)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return Linux().write(tmp_path / "tree")


@pytest.mark.parametrize(("table", "name"), [("gpt", "1"), ("dos", "1"), ("logical", "5"), ("none", "disk")])
async def test_every_partition_table(tmp_path: Path, tree: Path, table: str, name: str) -> None:
    offset = make_disk(tmp_path / "disk", tree, table=table)
    found = await look(tmp_path / "disk")
    assert found.chosen is not None
    assert (found.chosen.volume.name, found.chosen.volume.offset_bytes) == (name, offset)
    assert found.chosen.root.title == "Debian GNU/Linux 12 (bookworm)"


@pytest.mark.parametrize("kind", ["ext2", "ext3", "ext4"])
async def test_the_facts(tmp_path: Path, tree: Path, kind: str) -> None:
    make_disk(tmp_path / "disk", tree, kind=kind)
    found = await look(tmp_path / "disk")
    assert found.chosen is not None
    root = found.chosen.root
    assert (root.os, root.version, root.init, root.libc) == ("debian", "12", "systemd", "glibc")
    assert (root.arch, root.agent, root.boot_loader) == ("x86_64", None, None)
    kernel = found.kernel
    assert kernel is not None
    assert (kernel.version, kernel.image) == ("6.1.0", "vmlinuz-6.1.0")
    assert kernel.buses == ("virtio",)
    assert kernel.nics == ("virtio",)
    assert kernel.has("virtio_console")
    assert kernel.has("9p") is False


@pytest.mark.parametrize(
    ("init", "name"),
    [
        *((init, init) for init in ("systemd", "openrc", "sysvinit", "busybox", "runit")),
        ("/etc/s6-linux-init/current/bin/init", "s6"),
        ("/usr/bin/my-init", "unknown"),
        ("/nix/store/abc-systemd/lib/systemd/systemd", "unknown"),
    ],
)
async def test_init_systems(tmp_path: Path, init: str, name: str) -> None:
    files = {init.lstrip("/"): elf()} if "/" in init else {}
    make_disk(tmp_path / "disk", Linux(init=init, files=files).write(tmp_path / "tree"))
    found = await look(tmp_path / "disk")
    assert found.chosen is not None
    assert found.chosen.root.init == name


@pytest.mark.parametrize(
    ("loader", "libc"),
    [("/lib/ld-musl-x86_64.so.1", "musl"), ("/lib/ld-linux.so.2", "glibc"), ("", "static")],
)
async def test_c_libraries(tmp_path: Path, loader: str, libc: str) -> None:
    make_disk(tmp_path / "disk", Linux(libc=loader).write(tmp_path / "tree"))
    found = await look(tmp_path / "disk")
    assert found.chosen is not None
    assert found.chosen.root.libc == libc


async def test_our_own_agent(tmp_path: Path) -> None:
    files = {"usr/lib/bough/bough/guest/agent.py": "", "usr/lib/systemd/system/bough-agent.service": ""}
    tree = Linux(files=files).write(tmp_path / "tree")
    make_disk(tmp_path / "disk", tree)
    assert (found := (await look(tmp_path / "disk")).chosen)
    assert found.root.agent is None, "the unit is not enabled"
    link = tree / "etc/systemd/system/sysinit.target.wants/bough-agent.service"
    link.parent.mkdir(parents=True)
    link.symlink_to("/usr/lib/systemd/system/bough-agent.service")
    make_disk(tmp_path / "disk", tree)
    assert (found := (await look(tmp_path / "disk")).chosen)
    assert found.root.agent == "installed"
    make_disk(tmp_path / "disk", Linux(files={"usr/lib/bough/start": ""}).write(tmp_path / "other"))
    assert (found := (await look(tmp_path / "disk")).chosen)
    assert found.root.agent == "disk"


@pytest.mark.parametrize(
    ("initrd", "buses"),
    [
        (None, ("sata",)),
        (cpio(["a/virtio_blk.ko"]), ("virtio", "sata")),
        (lzma.compress(cpio(["a/virtio_scsi.ko.gz", "x"])), ("scsi", "sata")),
        (lzma.compress(cpio(["a/nvme.ko.zst"]), format=lzma.FORMAT_ALONE), ("sata", "nvme")),
        (b"of another form", None),
        (lzma.compress(cpio(["a/nvme.ko"] * 100))[:-40], None),
    ],
)
async def test_initrds(tmp_path: Path, initrd: bytes | None, buses: tuple[str, ...] | None) -> None:
    builtin = ("virtio_pci", "ahci", "sd_mod")
    make_disk(tmp_path / "disk", Linux(builtin=builtin, initrd=initrd).write(tmp_path / "tree"))
    found = await look(tmp_path / "disk")
    assert found.kernel is not None
    assert found.kernel.buses == buses


async def test_a_kernel_elsewhere(tmp_path: Path, tree: Path) -> None:
    """A kernel on an EFI system partition is not found, and its initrd may have any driver."""
    for path in (tree / "boot").iterdir():
        path.unlink()
    make_disk(tmp_path / "disk", tree)
    found = await look(tmp_path / "disk")
    assert found.kernel is not None
    assert (found.kernel.image, found.kernel.buses, found.kernel.nics) == (None, None, ("virtio",))


async def test_a_partition_of_its_own_for_boot(tmp_path: Path, tree: Path) -> None:
    disk, boot = tmp_path / "disk", tmp_path / "boot"
    (tree / "boot").rename(boot)
    (tree / "boot").mkdir()
    with disk.open("wb") as stream:
        stream.truncate(40 * MIB)
    script = "label: gpt\nstart=2048, size=16384, type=linux\nstart=18432, size=49152, type=linux\n"
    run("sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", disk, text=script)
    make_file_system(disk, boot, MIB, 8 * MIB)
    make_file_system(disk, tree, 9 * MIB, 24 * MIB)
    found = await look(disk)
    assert found.chosen is not None
    assert found.chosen.volume.name == "2"
    assert found.kernel is not None
    assert found.kernel.buses == ("virtio",)


async def test_two_linuxes(tmp_path: Path, tree: Path) -> None:
    disk = tmp_path / "disk"
    with disk.open("wb") as stream:
        stream.truncate(52 * MIB)
    script = "label: gpt\nstart=2048, size=49152, type=linux\nstart=51200, size=49152, type=linux\n"
    run("sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", disk, text=script)
    make_file_system(disk, tree, MIB)
    alpine = Linux(init="openrc", release="ID=alpine\nVERSION_ID=3.23.0\n").write(tmp_path / "alpine")
    make_file_system(disk, alpine, 25 * MIB)
    found = await look(disk)
    assert found.chosen is None
    note = several_linuxes(found)
    assert "Debian GNU/Linux 12 (bookworm) in partition 1; alpine 3.23.0 in partition 2" in note.text
    assert "--root 1" in note.hint
    assert (chosen := (await look(disk, "2")).chosen)
    assert chosen.root.os == "alpine"
    with pytest.raises(InvalidInput, match="no partition '3'") as caught:
        await look(disk, "3")
    assert "1 (ext), 2 (ext)" in str(caught.value.hint)


async def test_no_linux(tmp_path: Path) -> None:
    disk, empty = tmp_path / "disk", tmp_path / "empty"
    disk.write_bytes(bytes(MIB))
    assert "no Linux was found" in without_linux(await look(disk)).text
    empty.mkdir()
    make_disk(disk, empty)
    found = await look(disk)
    assert (found.roots, found.chosen) == ((), None)
    with pytest.raises(InvalidInput, match="partition 1 of the disk has no Linux"):
        await look(disk, "1")


@pytest.mark.parametrize(
    ("magic", "place", "says"),
    [
        (b"LUKS\xba\xbe\0\2", 0, "asks for the passphrase"),
        (b"hsqs", 0, "read-only file system (squashfs)"),
        (b"XFSB", 0, "cannot look into partition 1 (xfs)"),
        (b"_BHRfS_M", 0x10040, "cannot look into partition 1 (btrfs)"),
    ],
)
async def test_other_contents(tmp_path: Path, tree: Path, magic: bytes, place: int, says: str) -> None:
    disk = tmp_path / "disk"
    offset = make_disk(disk, tree)
    with disk.open("r+b") as stream:
        stream.seek(offset)
        stream.write(bytes(128 * 1024))
        stream.seek(offset + place)
        stream.write(magic)
    found = await look(disk)
    assert found.chosen is None
    assert says in without_linux(found).text


async def test_a_damaged_file_system(tmp_path: Path, tree: Path) -> None:
    disk = tmp_path / "disk"
    offset = make_disk(disk, tree)
    with disk.open("r+b") as stream:
        stream.seek(offset + 1024 + 24)
        stream.write(b"\xff" * 30)
    found = await look(disk)
    assert found.chosen is None
    assert "partition 1 cannot be read: debugfs cannot open it" in without_linux(found).text


async def test_files_cannot_pass_for_answers(tmp_path: Path) -> None:
    """Content that looks like debugfs's output changes nothing but the file's own text."""
    faked = "debugfs: stat /etc/.\nInode: 12   Type: regular    Mode:  0644\n"
    release = f"{faked}debugfs: cat <1>\nID=\"a b\"\nVERSION_ID=$(reboot)\nPRETTY_NAME='\x1b[2Jx\\`'\n"
    make_disk(tmp_path / "disk", Linux(release=release).write(tmp_path / "tree"))
    assert (found := (await look(tmp_path / "disk")).chosen)
    assert (found.root.os, found.root.version, found.root.title) == ("", "", "[2Jx")


async def test_links_in_a_circle_and_out_of_the_disk(tmp_path: Path) -> None:
    tree = Linux().write(tmp_path / "tree")
    (tree / "usr/sbin/init").unlink()
    (tree / "usr/sbin/init").symlink_to("../sbin/init")
    (tree / "usr/bin/init").symlink_to("../../../../../../etc/shadow")
    (tree / "usr/lib/systemd/systemd").unlink()
    make_disk(tmp_path / "disk", tree)
    assert (await look(tmp_path / "disk")).roots == ()
