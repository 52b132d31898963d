"""Compare two systems on small real disks. No jail and no guest; tests/machines has the jail."""

from __future__ import annotations

import io
import os
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bough.differences.configuration import printable
from bough.differences.content import Contents
from bough.differences.disk import Disk, DiskStream, DiskUnreadable, Piece
from bough.differences.ext.files import ROOT, ExtFiles
from bough.differences.packages import read_packages
from bough.differences.program import Comparison
from bough.differences.secrets import mask, why_withheld
from bough.differences.tree import Found, Tree, open_tree
from bough.images.linux_disk.volumes import read_volumes
from tests.linux_disks import MIB, Linux, make_disk, make_file_system, run

STATUS = """Package: base-files
Status: install ok installed
Architecture: amd64
Version: 12

Package: nginx
Status: install ok installed
Architecture: amd64
Version: 1.22-1
Conffiles:
 /etc/nginx/nginx.conf {md5}

Package: gone
Status: deinstall ok config-files
Version: 1
"""


@pytest.fixture
def opened() -> Iterator[list[int]]:
    descriptors: list[int] = []
    yield descriptors
    for descriptor in descriptors:
        os.close(descriptor)


class Systems:
    """Opens disks and compares them."""

    def __init__(self, place: Path, opened: list[int]) -> None:
        self.place = place
        self._opened = opened

    def make(self, name: str, files: dict[str, str | bytes], **how: Any) -> Path:
        tree = Linux(files=files, initrd=None).write(self.place / f"{name}-tree")
        make_disk(self.place / f"{name}.raw", tree, **how)
        return self.place / f"{name}.raw"

    def disk(self, *chain: Path) -> Disk:
        self._opened += (descriptors := [os.open(path, os.O_RDONLY) for path in chain])
        return Disk(descriptors, ["qcow2" if path.suffix == ".qcow2" else "raw" for path in chain])

    def tree(self, *chain: Path) -> Tree:
        disk = self.disk(*chain)
        stream = io.BufferedReader(DiskStream(disk))
        volumes = [
            Found(0, one.name, one.kind.value, one.offset_bytes, one.size_bytes)
            for one in read_volumes(stream)
        ]
        return open_tree([disk], volumes)

    def compare(self, before: Tree, after: Tree, most_bytes: int = 1 << 30) -> dict[str, Any]:
        return dict(Comparison(before, after, most_bytes).run())


@pytest.fixture
def systems(tmp_path: Path, opened: list[int]) -> Systems:
    return Systems(tmp_path, opened)


def write_overlay(base: Path, changed: Path, overlay: Path) -> Path:
    """Make an overlay on `base` that has the content of the raw disk `changed`."""
    run("qemu-img", "convert", "-O", "qcow2", "-B", base, "-F", "raw", changed, overlay)
    return overlay


def change(disk: Path, *commands: str, offset: int = MIB) -> None:
    """Change a file system by commands of debugfs."""
    run("debugfs", "-w", "-f", "-", f"{disk}?offset={offset}", text="".join(f"{one}\n" for one in commands))


def test_a_container_image_that_is_one_program(systems: Systems) -> None:
    """Its disk also has a boot partition, whose squashfs bough does not read."""
    tree = systems.place / "tree"
    (tree / ".bough").mkdir(parents=True)
    (tree / "program").write_text("x")
    make_disk(systems.place / "disk.raw", tree)
    volume = Found(0, "4", "ext", MIB, 24 * MIB)
    found = open_tree([systems.disk(systems.place / "disk.raw")], [Found(0, "3", "squashfs", 0, 512), volume])
    assert found.read(b"/program") == b"x"
    assert [one.name for one, _ in found.unread] == ["3"]


@pytest.mark.parametrize("kind", ["ext2", "ext3", "ext4"])
def test_every_file_is_read(systems: Systems, kind: str) -> None:
    """Small and large files, long links, a directory of many blocks."""
    files: dict[str, str | bytes] = {f"srv/{number:03}-{'x' * 90}": str(number) for number in range(200)}
    files |= {"srv/large": os.urandom(600_000), "srv/empty": ""}
    root = Linux(files=files).write(systems.place / "tree")
    (root / "srv/short").symlink_to("large")
    (root / "srv/long").symlink_to("/".join("a" * 100))
    make_disk(systems.place / "disk.raw", root, kind=kind)
    tree = systems.tree(systems.place / "disk.raw")
    found = tree.names(b"/srv")
    assert {os.fsdecode(name) for name in found} == {path.name for path in (root / "srv").iterdir()}
    for name, node in found.items():
        path = root / "srv" / os.fsdecode(name)
        if path.is_symlink():
            assert node.files.link(node.inode) == os.fsencode(path.readlink())
        else:
            assert node.files.read(node.inode, 1 << 20) == path.read_bytes()
            assert node.inode.mode == path.stat().st_mode
    assert tree.read(b"/srv/short/../short") == files["srv/large"]


def test_nothing_differs(systems: Systems) -> None:
    disk = systems.make("one", {"srv/data": os.urandom(5000)})
    found = systems.compare(systems.tree(disk), systems.tree(disk))
    assert not any(found[key] for key in ("configuration", "units", "users", "groups", "sysctls", "notes"))
    assert found["files"]["list"] == found["disk_use"]["directories"] == []


def test_an_overlay_and_what_differs(systems: Systems) -> None:
    large = os.urandom(300_000)
    base = systems.make(
        "base", {"etc/hosts": "a\nb\n", "etc/old": "x\n", "srv/large": large, "srv/kept": large}
    )
    changed = systems.place / "changed.raw"
    changed.write_bytes(base.read_bytes())
    new = systems.place / "hosts"
    new.write_text("a\nc\n")
    same_size = systems.place / "large"
    same_size.write_bytes(large[:-1] + bytes([large[-1] ^ 1]))
    change(
        changed,
        *("rm /etc/hosts", f"write {new} /etc/hosts", "rm /etc/old", "rm /srv/large"),
        *(f"write {same_size} /srv/large", "sif /srv/kept uid 33", "symlink /etc/link hosts"),
    )
    overlay = write_overlay(base, changed, systems.place / "top.qcow2")
    found = systems.compare(systems.tree(base), systems.tree(overlay, base))
    entries = {one["path"]: one for one in found["configuration"]}
    assert entries["/etc/hosts"]["diff"].split("\n")[2:] == ["@@ -1,2 +1,2 @@", " a", "-b", "+c"]
    assert entries["/etc/old"]["change"] == "removed"
    assert entries["/etc/link"]["details"] == ["link to hosts"]
    listed = {one["path"]: one["details"] for one in found["files"]["list"]}
    assert listed == {"/srv/large": ["content"], "/srv/kept": ["owner 0:0 -> 33:0"]}
    assert found["files"]["directories"] == [{"path": "/srv", "added": 0, "removed": 0, "changed": 2}]
    # The other way round, and against the same content in another file.
    back = systems.compare(systems.tree(overlay, base), systems.tree(base))
    assert {one["path"]: one["change"] for one in back["configuration"]}["/etc/old"] == "added"
    assert systems.compare(systems.tree(overlay, base), systems.tree(changed))["configuration"] == []


def test_extended_attributes(systems: Systems) -> None:
    """In the inode, and in a block of their own. The value is not told."""
    base = systems.make("base", {"srv/a": "x", "srv/b": "x", "srv/c": "x"})
    changed = systems.place / "changed.raw"
    changed.write_bytes(base.read_bytes())
    value = systems.place / "value"
    value.write_bytes(b"secret" * 100)
    change(
        changed,
        *("ea_set /srv/a user.small secret", f"ea_set -f {value} /srv/b user.large"),
        *("ea_set /srv/c user.same 1",),
    )
    found = systems.compare(systems.tree(base), systems.tree(changed))
    listed = {one["path"]: one["details"] for one in found["files"]["list"]}
    assert listed == {
        "/srv/a": ["attribute user.small"],
        "/srv/b": ["attribute user.large"],
        "/srv/c": ["attribute user.same"],
    }
    assert "secret" not in repr(found)
    again = systems.place / "again.raw"
    again.write_bytes(changed.read_bytes())
    change(again, "ea_set /srv/a user.small other", "ea_rm /srv/c user.same", "ea_set /srv/c user.same 1")
    found = systems.compare(systems.tree(changed), systems.tree(again))
    assert {one["path"]: one["details"] for one in found["files"]["list"]} == {
        "/srv/a": ["attribute user.small"]
    }


def test_unwritten_files_are_not_read(systems: Systems) -> None:
    """Only what a guest has written since both disks were one is read."""
    base = systems.make("base", {"srv/large": os.urandom(2_000_000)})
    overlay = systems.place / "top.qcow2"
    run("qemu-img", "create", "-f", "qcow2", "-b", base, "-F", "raw", overlay)
    before, after = systems.tree(base), systems.tree(overlay, base)
    contents = Contents(0)
    one, other = (tree.find(b"/srv/large") for tree in (before, after))
    assert one is not None
    assert other is not None
    assert contents.are_equal(one, other)
    assert (contents.read_bytes, contents.assumed) == (0, 0)


def test_beyond_the_bound_size_and_time_decide(systems: Systems) -> None:
    one = systems.make("one", {"srv/large": bytes(range(250)) * 100})
    other = systems.place / "other.raw"
    other.write_bytes(one.read_bytes())
    found = systems.compare(systems.tree(one), systems.tree(other), most_bytes=0)
    assert found["files"]["list"] == []
    assert any("by size and time only" in note for note in found["notes"])


def test_a_dirty_journal_is_replayed_in_memory(systems: Systems) -> None:
    disk = systems.make("disk", {"etc/hosts": "of the disk\n"})
    before = systems.tree(disk)
    node = before.find(b"/etc/hosts")
    assert node is not None
    (first,) = node.files.runs(node.inode)
    assert first.place is not None
    block = systems.place / "block"
    block.write_bytes(b"of journal!\n".ljust(1024, b"\0"))
    dirty = systems.place / "dirty.raw"
    dirty.write_bytes(disk.read_bytes())
    change(dirty, "jo", f"jw -b {first.place // 1024} {block}", "jc")
    content = dirty.read_bytes()
    after = systems.tree(dirty)
    assert after.read(b"/etc/hosts") == b"of journal!\n"
    found = systems.compare(before, after)
    assert [one["path"] for one in found["configuration"]] == ["/etc/hosts"]
    assert found["systems"]["after"]["replayed"]
    assert dirty.read_bytes() == content


def test_a_block_that_begins_like_the_journal(systems: Systems) -> None:
    """The journal stores such a block with zeros instead of its first bytes."""
    disk = systems.make("disk", {"srv/file": "x" * 12})
    node = systems.tree(disk).find(b"/srv/file")
    assert node is not None
    (first,) = node.files.runs(node.inode)
    assert first.place is not None
    block = systems.place / "block"
    block.write_bytes(b"\xc0\x3b\x39\x98 magic".ljust(1024, b"\0"))
    change(disk, "jo", f"jw -b {first.place // 1024} {block}", "jc")
    tree = systems.tree(disk)
    node = tree.find(b"/srv/file")
    assert node is not None
    assert tree.read(b"/srv/file") == b"\xc0\x3b\x39\x98 magic".ljust(12, b"\0")
    assert Contents(1 << 20).are_equal(node, node)


def test_packages_and_their_files(systems: Systems) -> None:
    import hashlib

    own = "worker 1;\n"
    status = STATUS.replace("{md5}", hashlib.md5(own.encode()).hexdigest())
    before = systems.make("before", {"var/lib/dpkg/status": STATUS.partition("\n\n")[0].replace("12", "11")})
    after = systems.make(
        "after",
        {
            "var/lib/dpkg/status": status,
            "var/lib/dpkg/info/nginx.list": "/.\n/usr/share/nginx/index.html\n/sbin/nginx\n",
            "usr/share/nginx/index.html": "hello",
            "usr/sbin/nginx": "program",
            "etc/nginx/nginx.conf": own,
            "etc/nginx/site.conf": "mine\n",
            "srv/mine": "x",
        },
    )
    found = systems.compare(systems.tree(before), systems.tree(after))
    assert found["packages"] == {
        "manager": "dpkg",
        "added": [{"name": "nginx", "version": "1.22-1"}],
        "removed": [],
        "changed": [{"name": "base-files", "before": "11", "after": "12"}],
    }
    entries = {one["path"]: one for one in found["configuration"]}
    assert entries["/etc/nginx/nginx.conf"]["why"] == "as in its package"
    assert "+mine" in entries["/etc/nginx/site.conf"]["diff"]
    listed = [one["path"] for one in found["files"]["list"]]
    assert "/srv/mine" in listed
    assert not {"/usr/share/nginx/index.html", "/usr/sbin/nginx", "/var/lib/dpkg/info/nginx.list"} & set(
        listed
    )
    assert found["files"]["of_packages"] == 3


def test_packages_of_apk_and_rpm(systems: Systems) -> None:
    apk = systems.make(
        "apk", {"lib/apk/db/installed": "P:musl\nV:1.2-r0\n\nP:busybox\nV:1.36-r1\nF:bin\nR:busybox\n"}
    )
    assert read_packages(systems.tree(apk)).versions == {"musl": "1.2-r0", "busybox": "1.36-r1"}
    rpm = systems.make("rpm", {"usr/lib/sysimage/rpm/rpmdb.sqlite": _rpm_database(systems.place)})
    found = read_packages(systems.tree(rpm))
    assert (found.manager, found.versions) == ("rpm", {"bash": "1:5.2-3.fc40"})
    broken = systems.make("broken", {"usr/lib/sysimage/rpm/rpmdb.sqlite": "nothing"})
    assert read_packages(systems.tree(broken)).note == "the database of rpm cannot be read"


def _rpm_database(place: Path) -> bytes:
    import sqlite3

    store = b"bash\0" + b"5.2\0" + b"3.fc40\0"
    store += bytes(-len(store) % 4)
    tags = [(1000, 6, 0), (1001, 6, 5), (1002, 6, 9), (1003, 4, len(store))]
    store += struct.pack(">I", 1)
    header = struct.pack(">II", len(tags), len(store))
    header += b"".join(struct.pack(">IIII", tag, kind, at, 1) for tag, kind, at in tags) + store
    path = place / "rpmdb.sqlite"
    database = sqlite3.connect(path)
    database.execute("CREATE TABLE Packages (hnum INTEGER PRIMARY KEY, blob BLOB NOT NULL)")
    database.execute("INSERT INTO Packages VALUES (1, ?)", (header,))
    database.commit()
    database.close()
    return path.read_bytes()


def test_services_users_and_settings(systems: Systems) -> None:
    before = systems.make(
        "before",
        {
            "etc/passwd": "root:x:0:0:root:/root:/bin/bash\nann:x:1000:1000::/home/ann:/bin/sh\n",
            "etc/shadow": "root:$6$old$hash:1:0:9:7:::\nann:!:1::::::\n",
            "etc/group": "root:x:0:\nsudo:x:27:\n",
            "usr/lib/sysctl.d/50.conf": "vm.swappiness = 60\n",
        },
    )
    root = Linux(
        files={
            "etc/passwd": "root:x:0:0:root:/root:/bin/bash\nann:x:1000:1000::/home/ann:/bin/bash\n"
            "bob:x:1001:1001::/:/x\n",
            "etc/shadow": "root:$6$new$hash:1:0:9:7:::\nann:!:1::::::\n",
            "etc/group": "root:x:0:\nsudo:x:27:ann\n",
            "usr/lib/sysctl.d/50.conf": "vm.swappiness = 60\n",
            "etc/sysctl.d/99.conf": "# mine\nvm/swappiness=10\n-net.ipv4.ip_forward = 1\n",
        }
    ).write(systems.place / "after-tree")
    wants = root / "etc/systemd/system/multi-user.target.wants"
    wants.mkdir(parents=True)
    (wants / "nginx.service").symlink_to("/lib/systemd/system/nginx.service")
    (wants.parent / "cron.service").symlink_to("/dev/null")
    (root / "etc/runlevels/default").mkdir(parents=True)
    (root / "etc/runlevels/default/sshd").symlink_to("/etc/init.d/sshd")
    (root / "etc/shadow").chmod(0o640)
    make_disk(systems.place / "after.raw", root)
    found = systems.compare(systems.tree(before), systems.tree(systems.place / "after.raw"))
    assert {one["name"]: one["after"] for one in found["units"]} == {
        "cron.service": "masked",
        "nginx.service": "enabled",
        "sshd": "enabled (default)",
    }
    assert found["users"] == [
        {"name": "ann", "change": "changed", "details": ["shell /bin/sh -> /bin/bash"]},
        {"name": "bob", "change": "added", "details": ["uid 1001", "gid 1001", "home /", "shell /x"]},
        {"name": "root", "change": "changed", "details": ["another password"]},
    ]
    assert found["groups"] == [{"name": "sudo", "change": "changed", "details": ["members - -> ann"]}]
    assert found["sysctls"] == [
        {"name": "net.ipv4.ip_forward", "before": None, "after": "1"},
        {"name": "vm.swappiness", "before": "60", "after": "10"},
    ]
    assert "/etc/shadow" in found["withheld"]
    assert "$6$" not in repr(found)


@pytest.mark.parametrize(
    ("path", "mode", "content", "withheld"),
    [
        ("/etc/shadow", 0o100640, "", True),
        ("/etc/ssh/ssh_host_rsa_key", 0o100644, "", True),
        ("/etc/ssh/ssh_host_rsa_key.pub", 0o100644, "ssh-rsa A", False),
        ("/etc/app/tls.pem", 0o100644, "-----BEGIN EC PRIVATE KEY-----\n", True),
        ("/etc/app/tls.pem", 0o100644, "-----BEGIN CERTIFICATE-----\n", False),
        ("/etc/app.conf", 0o100600, "", True),
        ("/etc/sudoers.d/ann", 0o100440, "ann ALL=(ALL) ALL\n", False),
        ("/etc/wireguard/wg0.conf", 0o100644, "", True),
        ("/etc/hosts", 0o100644, "", False),
    ],
)
def test_withheld_files(path: str, mode: int, content: str, withheld: bool) -> None:
    assert (why_withheld(path.encode(), [mode], [content.encode()]) is not None) is withheld


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("+password = hunter2", "+password = [withheld]"),
        ("+DB_PASSWORD: 'x y'", "+DB_PASSWORD: [withheld]"),
        ("-api_key=abc", "-api_key=[withheld]"),
        ('+  "secret": "s3"', '+  "secret": [withheld]'),
        ("+url = postgres://me:pw@db/x", "+url = postgres://me:[withheld]@db/x"),
        ("+user:$6$salt$hash:1", "+user:[withheld]:1"),
        ("+# the password file is /etc/x of the server", "+# the password file is /etc/x of the server"),
        ("+listen 80;", "+listen 80;"),
        ("+PasswordAuthentication no", "+PasswordAuthentication no"),
        ("+PermitEmptyPasswords: 'yes'", "+PermitEmptyPasswords: 'yes'"),
        ("+password = no1", "+password = [withheld]"),
        ("+password =", "+password ="),
    ],
)
def test_masked_lines(line: str, shown: str) -> None:
    assert mask(line) == shown


def test_names_with_escapes(systems: Systems) -> None:
    before = systems.make("before", {})
    after = Linux(initrd=None).write(systems.place / "tree")
    for name in (b"srv\x1b[31m", b"etc/a\nb\xff.conf"):
        (after / os.fsdecode(name)).write_text("\x1b]0;x\x07\u202e\n")
    make_disk(systems.place / "after.raw", after)
    found = systems.compare(systems.tree(before), systems.tree(systems.place / "after.raw"))
    assert [one["path"] for one in found["files"]["list"]] == ["/srv\\x1b[31m"]
    (entry,) = found["configuration"]
    assert entry["path"] == "/etc/a\\nb\\xff.conf"
    assert printable(entry["diff"].replace("\n", "")) == entry["diff"].replace("\n", "")


def test_texts_that_are_made_to_take_long(systems: Systems) -> None:
    one = "".join(f"{number % 97}\n" for number in range(60_000))
    other = "".join(f"{number * 7 % 101}\n" for number in range(60_000))
    before, after = systems.make("before", {"etc/x": one}), systems.make("after", {"etc/x": other})
    (entry,) = systems.compare(systems.tree(before), systems.tree(after))["configuration"]
    assert entry["change"] == "changed"
    assert "diff" in entry or entry["why"] == "the versions are too different for a diff"


def test_a_line_that_is_made_to_take_long(systems: Systems) -> None:
    before = systems.make("before", {})
    after = systems.make("after", {"etc/x": "password" * 30_000, "etc/y": "a" * 200_000 + "://"})
    entries = systems.compare(systems.tree(before), systems.tree(after))["configuration"]
    assert all(one["diff"].split("\n")[-1].endswith("... (cut)") for one in entries)


def test_file_systems_are_mounted_as_in_fstab(systems: Systems) -> None:
    fstab = "UUID=00000000-0000-4000-8000-000000000001 /home ext4 defaults 0 2\n/dev/sda9 /x ext4\n"
    root = Linux(files={"etc/fstab": fstab}).write(systems.place / "tree")
    (root / "home").mkdir()
    disk = systems.place / "disk.raw"
    disk.write_bytes(bytes(60 * MIB))
    run(
        *("sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", disk),
        text="label: gpt\nstart=2048, size=49152\nstart=51200, size=16384\nstart=67584, size=16384\n",
    )
    make_file_system(disk, root, MIB)
    for number, offset in ((1, 25 * MIB), (2, 33 * MIB)):
        own = systems.place / f"own{number}"
        (own / "below").mkdir(parents=True)
        (own / "below/file").write_text("x")
        identity = f"00000000-0000-4000-8000-00000000000{number}"
        make_file_system(disk, own, offset, 8 * MIB, "ext4", "-U", identity)
    tree = systems.tree(disk)
    assert tree.read(b"/home/below/file") == b"x"
    assert tree.notes == ["/etc/fstab does not name partition 3; its files are below /[partition 3]"]
    plain = systems.make("plain", {"etc/fstab": fstab})
    found = systems.compare(systems.tree(plain), tree)
    # The initrd of each sample has a time of its own.
    assert {one["path"] for one in found["files"]["list"]} - {"/boot/initrd.img-6.1.0"} == {
        "/home/below/file",
        "/[partition 3]/below/file",
    }


def test_one_program_without_a_linux(systems: Systems) -> None:
    """A container image may have no /etc."""
    before, after = systems.place / "before.raw", systems.place / "after.raw"
    (systems.place / "tree").mkdir()
    (systems.place / "tree/program").write_bytes(b"x")
    make_file_system(before, None, 0, 4 * MIB)
    make_file_system(after, systems.place / "tree", 0, 4 * MIB)
    found = systems.compare(systems.tree(before), systems.tree(after))
    assert [one["path"] for one in found["files"]["list"]] == ["/program"]
    assert found["notes"] == []


def test_a_disk_without_a_linux(systems: Systems) -> None:
    disk = systems.place / "disk.raw"
    disk.write_bytes(bytes(MIB))
    with pytest.raises(DiskUnreadable, match="no file system was found"):
        systems.tree(disk)
    for magic, word in ((b"LUKS\xba\xbe", "it is encrypted"), (b"XFSB", "it has the file system xfs")):
        disk.write_bytes(magic.ljust(8 * MIB, b"\0"))
        with pytest.raises(DiskUnreadable, match=f"the whole disk: {word}"):
            systems.tree(disk)


def test_damage_is_told_and_bounded(systems: Systems) -> None:
    """Wrong bytes anywhere give a result or DiskUnreadable, and no other error."""
    disk = systems.make("disk", {f"srv/{number}": "x" * 3000 for number in range(60)})
    good = systems.tree(disk)
    content = bytearray(disk.read_bytes())
    damaged = systems.place / "damaged.raw"
    used = [at for at in range(MIB, MIB + 2 * MIB, 1024) if any(content[at : at + 1024])]
    for step, at in enumerate(used[:: max(1, len(used) // 24)]):
        wrong = bytearray(content)
        wrong[at : at + 1024] = os.urandom(1024) if step % 2 else b"\xff" * 1024
        damaged.write_bytes(wrong)
        try:
            systems.compare(good, systems.tree(damaged))
        except DiskUnreadable:
            continue


def test_a_directory_in_itself(systems: Systems) -> None:
    disk = systems.make("disk", {"srv/a/b/file": "x"})
    change(disk, "link /srv /srv/a/b/again")
    found = systems.compare(systems.tree(disk), systems.tree(disk))
    assert any("a directory is in two places" in note for note in found["notes"])


def test_a_circle_of_links(systems: Systems) -> None:
    root = Linux().write(systems.place / "tree")
    (root / "etc/a").symlink_to("b")
    (root / "etc/b").symlink_to("a")
    (root / "etc/up").symlink_to("../../../../etc/hostname")
    (root / "etc/hostname").write_text("web\n")
    make_disk(systems.place / "disk.raw", root)
    tree = systems.tree(systems.place / "disk.raw")
    assert tree.find(b"/etc/a") is None
    assert tree.read(b"/etc/up") == b"web\n"


class TestOverlay:
    """The reader of overlays."""

    def test_the_places(self, systems: Systems) -> None:
        base = systems.place / "base.raw"
        base.write_bytes(b"b" * (200 << 10))
        middle, top = systems.place / "middle.qcow2", systems.place / "top.qcow2"
        run("qemu-img", "create", "-f", "qcow2", "-b", base, "-F", "raw", middle, "1M")
        run("qemu-io", "-f", "qcow2", "-c", "write -P 0x6d 64k 64k", middle)
        run("qemu-img", "create", "-f", "qcow2", "-b", middle, "-F", "qcow2", top)
        run("qemu-io", "-f", "qcow2", "-c", "write -P 0x74 128k 10k", "-c", "write -z 960k 64k", top)
        disk = systems.disk(top, middle, base)
        raw = systems.place / "raw"
        run("qemu-img", "convert", "-O", "raw", top, raw)
        content = raw.read_bytes()
        assert disk.size_bytes == len(content)
        assert disk.read(0, len(content)) == content
        for offset, length in ((0, 1), (65535, 2), (60_000, 90_000), (199 << 10, 3 << 10), (1 << 20, 0)):
            assert disk.read(offset, length) == content[offset : offset + length]
            assert sum(piece.length for piece in disk.pieces(offset, length)) == length
        identity = (base.stat().st_dev, base.stat().st_ino)
        assert disk.pieces(1000, 500) == [Piece(identity, 1000, 500)]
        assert disk.pieces(970 << 10, 1024) == [Piece(None, 0, 1024)]

    @pytest.mark.parametrize(
        ("place", "value"),
        [
            (0, b"QFI\0"),
            (4, b"\0\0\0\x09"),
            (20, b"\0\0\0\x40"),
            (32, b"\0\0\0\1"),
            (72, b"\0\0\0\0\0\0\0\x14"),
        ],
    )
    def test_a_wrong_header(self, systems: Systems, place: int, value: bytes) -> None:
        top = systems.place / "top.qcow2"
        run("qemu-img", "create", "-f", "qcow2", top, "1M")
        content = bytearray(top.read_bytes())
        content[place : place + len(value)] = value
        top.write_bytes(content)
        with pytest.raises(DiskUnreadable):
            systems.disk(top)

    def test_compressed_clusters(self, systems: Systems) -> None:
        raw, top = systems.place / "raw", systems.place / "top.qcow2"
        raw.write_bytes(b"x" * MIB)
        run("qemu-img", "convert", "-c", "-O", "qcow2", raw, top)
        with pytest.raises(DiskUnreadable, match="compressed"):
            systems.disk(top).read(0, 10)


@pytest.mark.parametrize("features", ["inline_data", "^extents,^64bit", "meta_bg,^resize_inode", "bigalloc"])
def test_features_of_ext4(systems: Systems, features: str) -> None:
    root = Linux(
        files={"srv/small": "tiny", "srv/medium": "m" * 100, "srv/large": os.urandom(400_000)}
    ).write(systems.place / "tree")
    for number in range(30):
        (root / f"srv/directory/{number}").mkdir(parents=True)
    disk = systems.place / "disk.raw"
    try:
        make_file_system(disk, root, 0, 40 * MIB, "ext4", "-O", features, "-I", "256")
    except AssertionError:
        pytest.skip("this mke2fs lacks the feature")
    tree = systems.tree(disk)
    for name in ("small", "medium", "large"):
        assert tree.read(f"/srv/{name}".encode()) == (root / "srv" / name).read_bytes()
    assert len(tree.names(b"/srv/directory")) == 30
    assert systems.compare(tree, systems.tree(disk))["notes"] == []


def test_a_sparse_file_takes_no_time(systems: Systems) -> None:
    """A file of 1 TiB that is a hole: its size alone costs nothing."""
    root = Linux().write(systems.place / "tree")
    with (root / "srv").open("wb") as stream:
        stream.truncate(1 << 40)
        stream.seek(1 << 39)
        stream.write(b"x")
    make_disk(systems.place / "disk.raw", root)
    one, other = systems.tree(systems.place / "disk.raw"), systems.tree(systems.place / "disk.raw")
    assert systems.compare(one, other)["files"]["list"] == []
    node = one.find(b"/srv")
    assert node is not None
    assert node.inode.size == 1 << 40


def test_the_inodes_are_as_debugfs_says(systems: Systems) -> None:
    disk = systems.make("disk", {"etc/x": "x"})
    (tree,) = [ExtFiles(systems.disk(disk), MIB, 24 * MIB)]
    told = subprocess.run(
        ["/usr/sbin/debugfs", "-R", "stat /etc/x", f"{disk}?offset={MIB}"],
        capture_output=True,
        check=True,
        text=True,
    ).stdout
    entries = tree.entries(tree.inode(ROOT))
    inode = tree.inode(tree.entries(tree.inode(entries[b"etc"]))[b"x"])
    assert f"Inode: {inode.number} " in told
    assert f"Generation: {inode.generation} " in told
    assert f"mtime: 0x{inode.modified // 1_000_000_000:08x}" in told
