"""Write the agent's starter to small real disks from outside. debugfs runs without a jail here."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from bough.guest.install import GuestFile, GuestLink
from bough.images.confined import Confinement
from bough.images.linux_disk import installation
from bough.images.linux_disk.changes import Change, NewDirectory
from bough.images.linux_disk.ext import read_ext_state
from bough.images.linux_disk.installation import Outcome, install_agent
from bough.images.linux_disk.look import look_into
from bough.qemu.jail import Jail
from tests.linux_disks import (
    IDENTITY,
    MIB,
    Linux,
    check,
    make_disk,
    make_file_system,
    physical_volume,
    read_file,
    run,
)

CONFINEMENT = Confinement(Jail(), uid=None)
UNIT = "/usr/lib/systemd/system/bough-agent.service"
WANTED = "/etc/systemd/system/sysinit.target.wants/bough-agent.service"
CHANGES: Sequence[Change] = (
    GuestFile("/usr/lib/bough/start", b"#!/bin/sh\nexit 0\n", 0o755),
    GuestFile("/lib/systemd/system/bough-agent.service", b"[Service]\n" * 400),
    GuestLink(WANTED, UNIT),
    NewDirectory("/.bough"),
)


def starter_of(init: str, inittab: bytes | None) -> Sequence[Change] | None:
    if init in ("unknown", "s6"):
        return None
    return CHANGES if inittab is None else [*CHANGES, GuestFile("/etc/inittab", inittab + b"x\n")]


async def install(disk: Path) -> Outcome:
    work = disk.parent / "work"
    work.mkdir(exist_ok=True)
    look = await look_into(disk, CONFINEMENT, work)
    outcome = await install_agent(disk, look, starter_of, CONFINEMENT, work)
    assert list(work.iterdir()) == [], "left-over files"
    return outcome


async def refuses(disk: Path, says: str) -> None:
    before = hashlib.sha256(disk.read_bytes()).digest()
    outcome = await install(disk)
    assert outcome.agent is None
    assert not outcome.is_spoiled
    assert says in outcome.notes[0].text, outcome.notes
    assert "no exec, cp and shell" in outcome.notes[0].text
    assert hashlib.sha256(disk.read_bytes()).digest() == before, "the disk was changed"


def describe(disk: Path, offset: int, path: str) -> str:
    return run("debugfs", "-R", f"stat {path}", f"{disk}?offset={offset}")


@pytest.mark.parametrize("kind", ["ext2", "ext3", "ext4"])
@pytest.mark.parametrize("table", ["gpt", "none"])
async def test_the_files_are_there(tmp_path: Path, kind: str, table: str) -> None:
    disk = tmp_path / "disk"
    tree = Linux(files={"etc/inittab": "a\n"}).write(tmp_path / "tree")
    for number in range(300):  # a directory with an index
        (tree / f"usr/lib/systemd/system/a-unit-with-a-long-name-{number}.service").touch()
    offset = make_disk(disk, tree, kind=kind, table=table)
    assert await install(disk) == Outcome("disk")
    check(disk, offset)
    assert read_file(disk, offset, UNIT) == "[Service]\n" * 400
    assert read_file(disk, offset, "/etc/inittab") == "a\nx\n"
    assert "Mode:  0755" in describe(disk, offset, "/usr/lib/bough/start")
    assert "User:     0   Group:     0" in describe(disk, offset, "/usr/lib/bough/start")
    assert f'Fast link dest: "{UNIT}"' in describe(disk, offset, WANTED)
    assert "Type: directory    Mode:  0755" in describe(disk, offset, "/.bough")


async def test_a_second_time_and_the_same_bytes(tmp_path: Path) -> None:
    disk, twin = tmp_path / "disk", tmp_path / "twin"
    offset = make_disk(disk, Linux().write(tmp_path / "tree"))
    shutil.copy(disk, twin)
    assert (await install(disk)).agent == "disk"
    assert (await install(twin)).agent == "disk"
    assert disk.read_bytes() == twin.read_bytes()
    assert (await install(disk)).agent == "disk"
    check(disk, offset)


async def test_an_lvm_volume(tmp_path: Path) -> None:
    disk, offset, group = tmp_path / "disk", 3 * MIB, IDENTITY
    text = (
        f'vg0 {{ extent_size = 2048 physical_volumes {{ pv0 {{ id = "{group}" pe_start = 2048 }} }} '
        'logical_volumes { root { status = ["VISIBLE"] segment_count = 1 segment1 { extent_count = 24 '
        'type = "striped" stripe_count = 1 stripes = ["pv0", 2] } } } }'
    )
    disk.write_bytes(physical_volume(text.encode(), size=28 * MIB))
    make_file_system(disk, Linux().write(tmp_path / "tree"), offset)
    look = await look_into(disk, CONFINEMENT, tmp_path)
    assert look.chosen is not None
    assert (look.chosen.volume.name, str(look.chosen.volume)) == ("vg0/root", "LVM volume vg0/root")
    assert await install(disk) == Outcome("disk")
    check(disk, offset)
    assert read_file(disk, offset, UNIT) == "[Service]\n" * 400


async def test_the_own_agent_stays(tmp_path: Path) -> None:
    files = {"usr/lib/bough/bough/guest/agent.py": "", WANTED.lstrip("/"): ""}
    make_disk(tmp_path / "disk", Linux(files=files).write(tmp_path / "tree"))
    before = (tmp_path / "disk").read_bytes()
    assert await install(tmp_path / "disk") == Outcome("installed")
    assert (tmp_path / "disk").read_bytes() == before


async def test_selinux(tmp_path: Path) -> None:
    """New files get the context of their directory, and programs the context of programs."""
    disk = tmp_path / "disk"
    offset = make_disk(disk, Linux().write(tmp_path / "tree"))
    contexts = {"/usr/bin": "bin_t", "/usr/lib": "lib_t", "/usr/lib/systemd/system": "unit_t", "/": "root_t"}
    for path, kind in contexts.items():
        value = f"system_u:object_r:{kind}:s0"
        run("debugfs", "-w", "-R", f"ea_set {path} security.selinux {value}", f"{disk}?offset={offset}")
    assert (await install(disk)).agent == "disk"
    check(disk, offset)
    for path, kind in (("/usr/lib/bough/start", "bin_t"), (UNIT, "unit_t"), ("/usr/lib/bough", "lib_t")):
        shown = run("debugfs", "-R", f"ea_get {path} security.selinux", f"{disk}?offset={offset}")
        assert f"system_u:object_r:{kind}:s0" in shown, path


def make_dirty(disk: Path, offset: int, block: Path) -> None:
    """Write a transaction to the journal: the next mount writes `block` to block 20000."""
    script = f"jo\njw -b 20000 {block}\njc\n"
    run("debugfs", "-w", "-f", "-", f"{disk}?offset={offset}", text=script)
    with disk.open("rb") as stream:
        state = read_ext_state(stream, offset)
    assert state is not None
    assert state.needs_replay


async def test_a_dirty_journal_is_replayed(tmp_path: Path) -> None:
    disk, twin, block = tmp_path / "disk", tmp_path / "twin", tmp_path / "block"
    offset = make_disk(disk, Linux().write(tmp_path / "tree"))
    block.write_bytes(b"of the journal".ljust(1024, b"\0"))
    make_dirty(disk, offset, block)
    shutil.copy(disk, twin)
    assert await install(disk) == Outcome("disk")
    assert disk.read_bytes()[offset + 20000 * 1024 :].startswith(b"of the journal")
    check(disk, offset)
    assert await install(twin) == Outcome("disk")
    assert disk.read_bytes() == twin.read_bytes()


async def test_a_damaged_journal(tmp_path: Path) -> None:
    disk, block = tmp_path / "disk", tmp_path / "block"
    offset = make_disk(disk, Linux().write(tmp_path / "tree"))
    block.write_bytes(bytes(1024))
    make_dirty(disk, offset, block)
    content = disk.read_bytes()
    place = content.index(b"\xc0\x3b\x39\x98\0\0\0\4", offset)  # the journal's superblock
    disk.write_bytes(content[:place] + bytes(64) + content[place + 64 :])
    await refuses(disk, "its journal is damaged")


async def test_a_file_system_larger_than_its_partition(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    make_disk(disk, Linux().write(tmp_path / "tree"))
    script = "label: gpt\nstart=2048, size=40000, type=linux\n"
    run("sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", "--wipe", "never", disk, text=script)
    await refuses(disk, "larger than its partition")


@pytest.mark.parametrize(
    ("place", "value", "says"),
    [
        (0x64, 0x1000 | 0x3, "marked read-only"),
        (0x3A, 0x10002, "has errors"),
        (0x0C, 5, "is full: 5 KiB are free"),
        (0x10, 3, "is full: 3 more files"),
    ],
)
async def test_superblocks(tmp_path: Path, place: int, value: int, says: str) -> None:
    disk = tmp_path / "disk"
    offset = make_disk(disk, Linux().write(tmp_path / "tree"), kind="ext2")
    with disk.open("r+b") as stream:
        stream.seek(offset + 1024 + place)
        stream.write(value.to_bytes(4, "little"))
    await refuses(disk, says)


def fill(disk: Path, offset: int, content: Path) -> None:
    content.write_bytes(b"x" * (16 * MIB))
    for number in range(2):
        run("debugfs", "-w", "-R", f"write {content} filler{number}", f"{disk}?offset={offset}")


async def test_a_root_that_is_really_full(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    offset = make_disk(disk, Linux().write(tmp_path / "tree"))
    fill(disk, offset, tmp_path / "filler")
    await refuses(disk, "is full")


@pytest.mark.parametrize(
    ("linux", "says"),
    [
        (Linux(init="/usr/bin/mine", files={"usr/bin/mine": b"\x7fELF"}), "its init system is unknown"),
        (Linux(init="/etc/s6-linux-init/i", files={"etc/s6-linux-init/i": b"#!"}), "its init system is s6"),
        (Linux(files={"etc/fstab": "LABEL=u /usr ext4 defaults 0 1\n"}), "/usr is another file system"),
        (Linux(modules=("virtio_blk",)), "no driver for squashfs"),
    ],
)
async def test_refused_linuxes(tmp_path: Path, linux: Linux, says: str) -> None:
    make_disk(tmp_path / "disk", linux.write(tmp_path / "tree"))
    await refuses(tmp_path / "disk", says)


async def test_something_in_the_way(tmp_path: Path) -> None:
    make_disk(tmp_path / "disk", Linux(files={"usr/lib/bough": "x"}).write(tmp_path / "tree"))
    outcome = await install(tmp_path / "disk")
    assert outcome.agent is None
    assert "/usr/lib/bough is not a directory" in outcome.notes[0].text


async def test_a_write_that_fails_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full file system whose superblock tells another story: nothing counts as installed unread."""
    monkeypatch.setattr(installation, "_check_room", lambda state, changes: None)
    disk = tmp_path / "disk"
    offset = make_disk(disk, Linux().write(tmp_path / "tree"))
    fill(disk, offset, tmp_path / "filler")
    outcome = await install(disk)
    assert outcome.agent is None
    assert outcome.is_spoiled
