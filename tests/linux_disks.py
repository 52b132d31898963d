"""Small raw disks with a Linux, made by mke2fs and sfdisk from a directory. No root, no guest."""

from __future__ import annotations

import gzip
import os
import struct
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

MIB = 1 << 20
SECTOR = 512
_ENV = os.environ | {"PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin", "MKE2FS_DETERMINISTIC": "1"}
INITTAB = "::sysinit:/etc/init.d/rcS\n::ctrlaltdel:/sbin/reboot\n"
#: UUID of the physical volume below.
IDENTITY = "0123456789abcdefghijklmnopqrstuv"
ALPINE_INITTAB = "::sysinit:/sbin/openrc sysinit\n::wait:/sbin/openrc default\n"


def elf(machine: int = 62, loader: str | None = "/lib64/ld-linux-x86-64.so.2") -> bytes:
    """Return the beginning of a 64-bit program. `loader`: its interpreter; None for a static program."""
    name = (loader or "").encode() + b"\0"
    kind, count = (3, 1) if loader else (1, 1)
    head = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    head += struct.pack("<HHIQQQIHHHHHH", 3, machine, 1, 0, 64, 0, 0, 64, 56, count, 64, 0, 0)
    return head + struct.pack("<IIQQQQQQ", kind, 4, 120, 0, 0, len(name), len(name), 1) + name


def cpio(names: Sequence[str]) -> bytes:
    """Return an archive of files with a few bytes each, as in an initrd."""
    parts = []
    for name in (*names, "TRAILER!!!"):
        data = b"" if name == "TRAILER!!!" else b"data!"
        fields = (0, 0o100644, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
        header = b"070701" + b"".join(b"%08X" % number for number in fields) + name.encode() + b"\0"
        parts.append(header + bytes(-len(header) % 4) + data + bytes(-len(data) % 4))
    return b"".join(parts)


@dataclass
class Linux:
    """The files of a Linux.

    Attributes:
        init: systemd, openrc, sysvinit, busybox, runit, or a path for the link /sbin/init.
    """

    init: str = "systemd"
    release: str = 'ID=debian\nVERSION_ID="12"\nPRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\n'
    libc: str = "/lib64/ld-linux-x86-64.so.2"
    builtin: Sequence[str] = ("virtio_pci", "virtio_console")
    modules: Sequence[str] = ("squashfs", "virtio_blk", "virtio_net")
    initrd: bytes | None = field(
        default_factory=lambda: cpio(["kernel/x86/microcode/a.bin"]) + bytes(512)
        + gzip.compress(cpio(["init", "lib/modules/6.1.0/kernel/drivers/block/virtio_blk.ko.xz"]))
    )  # fmt: skip
    files: Mapping[str, str | bytes] = field(default_factory=dict)

    def write(self, root: Path) -> Path:
        """Write the files below `root`."""
        program = elf(loader=self.libc or None)
        for name in ("etc", "usr/bin", "usr/sbin", "usr/lib/systemd/system", "boot", "root"):
            (root / name).mkdir(parents=True)
        for name in ("bin", "sbin", "lib"):
            (root / name).symlink_to(f"usr/{name}")
        _put(root, "usr/bin/sh", program)
        _put(root, "usr/lib/os-release", self.release)
        (root / "etc/os-release").symlink_to("../usr/lib/os-release")
        self._write_init(root, program)
        modules = {
            "modules.builtin": "".join(f"kernel/x/{name}.ko\n" for name in self.builtin),
            "modules.dep": "".join(f"kernel/x/{name}.ko: kernel/x/other.ko\n" for name in self.modules),
        }
        for name, text in modules.items():
            _put(root, f"usr/lib/modules/6.1.0/{name}", text)
        _put(root, "boot/vmlinuz-6.1.0", b"kernel")
        if self.initrd is not None:
            _put(root, "boot/initrd.img-6.1.0", self.initrd)
        for name, content in self.files.items():
            _put(root, name, content)
        return root

    def _write_init(self, root: Path, program: bytes) -> None:
        init = root / "usr/sbin/init"
        if self.init == "systemd":
            _put(root, "usr/lib/systemd/systemd", program)
            init.symlink_to("../lib/systemd/systemd")
        elif self.init in ("openrc", "busybox"):
            _put(root, "usr/bin/busybox", program)
            init.symlink_to("/bin/busybox")
            _put(root, "etc/inittab", ALPINE_INITTAB if self.init == "openrc" else INITTAB)
            if self.init == "openrc":
                _put(root, "usr/sbin/openrc", program)
        elif self.init == "runit":
            _put(root, "usr/sbin/runit-init", program)
            init.symlink_to("runit-init")
        elif self.init == "sysvinit":
            init.write_bytes(program)
            _put(root, "etc/inittab", "id:2:initdefault:\nsi::sysinit:/etc/init.d/rcS\n")
        else:
            init.symlink_to(self.init)


def _put(root: Path, name: str, content: str | bytes) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def run(*argv: str | Path, text: str = "") -> str:
    done = subprocess.run(argv, input=text, env=_ENV, check=False, capture_output=True, text=True)
    assert done.returncode == 0, (argv, done.stdout, done.stderr)
    return done.stdout


def make_file_system(
    disk: Path, tree: Path | None, offset: int = 0, size: int = 24 * MIB, kind: str = "ext4", *more: str
) -> None:
    """Make a file system inside of a disk, with the files below `tree` and a small journal."""
    options = f"offset={offset},root_owner=0:0"
    words = ["mke2fs", "-q", "-F", "-t", kind, "-b", "1024", "-N", "600", "-E", options, *more]
    if kind != "ext2":
        words += ["-J", "size=1"]
    run(*words, *(("-d", str(tree)) if tree else ()), disk, f"{size // 1024}k")


def make_disk(path: Path, tree: Path, *, table: str = "gpt", kind: str = "ext4", size: int = 24 * MIB) -> int:
    """Make a disk with one Linux, and return the offset of its file system.

    Args:
        table: gpt, dos, logical (in an extended partition), or none.
    """
    offset = {"gpt": MIB, "dos": MIB, "logical": 3 * MIB, "none": 0}[table]
    with path.open("wb") as stream:
        stream.truncate(offset + size + MIB)
    scripts = {
        "gpt": f"label: gpt\nstart=2048, size={size // SECTOR}, type=linux\n",
        "dos": f"label: dos\nstart=2048, size={size // SECTOR}, type=83\n",
        "logical": f"label: dos\nstart=2048, size=2048, type=83\nstart=4096, type=5\n"
        f"start=6144, size={size // SECTOR - 2048}, type=83\n",
    }
    if table in scripts:
        run("sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", path, text=scripts[table])
    make_file_system(path, tree, offset, size - (MIB if table == "logical" else 0), kind)
    return offset


def check(disk: Path, offset: int) -> None:
    """Check that a file system has no error."""
    run("e2fsck", "-fn", f"{disk}?offset={offset}")


def read_file(disk: Path, offset: int, path: str) -> str:
    return run("debugfs", "-R", f"cat {path}", f"{disk}?offset={offset}")


def physical_volume(text: bytes, *, place: int = 512, size: int = 10 * MIB) -> bytearray:
    """Return an LVM2 physical volume, with its metadata at `place` of the area from 4 KiB to 68 KiB."""
    area, length, disk = 4096, 65536, bytearray(size)
    disk[512:544] = struct.pack("<8sQII8s", b"LABELONE", 1, 0, 32, b"LVM2 001")
    disk[544:576] = IDENTITY.encode()
    struct.pack_into("<QQQQQQQQQ", disk, 576, len(disk), MIB, 0, 0, 0, area, length, 0, 0)
    disk[area + 4 : area + 20] = b"\x20LVM2\x20x[5A%r0N*>"
    struct.pack_into("<IQQQQII", disk, area + 20, 1, area, length, place, len(text), 0, 0)
    first = min(len(text), length - place)
    disk[area + place : area + place + first] = text[:first]
    disk[area + 512 : area + 512 + len(text) - first] = text[first:]
    return disk
