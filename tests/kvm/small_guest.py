"""A guest that boots fast where exits are slow: a kernel, and an initrd with Python and bough's agent.

All files come from the disk of a Debian image. debugfs reads them: no root, no mount. The guest has no
systemd; its init is the script below. It boots by its disk, or directly by kernel and initrd.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import zstandard

from bough.guest.install import agent_files
from bough.images.disk import ROOT_OFFSET
from bough.units import MIB

CMDLINE = "console=ttyS0 quiet rdinit=/init"
_LOADER = "lib64/ld-linux-x86-64.so.2"
_LIBRARIES = "usr/lib/x86_64-linux-gnu"
_PYTHON = "usr/lib/python3.11"
_PROGRAMS = (
    *(
        "python3.11",
        "sh",
        "cat",
        "date",
        "sleep",
        "true",
        "false",
        "echo",
        "ls",
        "mkdir",
        "rm",
        "sync",
        "dd",
        "od",
    ),
    *(
        "sha256sum",
        "head",
        "tail",
        "mount",
        "umount",
        "uname",
        "id",
        "stat",
        "touch",
        "sshfs",
        "fusermount3",
        "ip",
    ),
    *(
        "hostname",
        "chmod",
        "chown",
        "cp",
        "mv",
        "ln",
        "mktemp",
        "readlink",
        "wc",
        "sort",
        "env",
        "find",
        "tar",
        "grep",
        "setsid",
        "stty",
    ),
)
#: Loaded in this order, each after the modules that it needs.
_MODULES = ("virtio_pci", "virtio_console", "virtio_blk", "virtio_net", "virtio_rng", "fuse", "ext4")
#: Large parts of Python that neither the agent nor a copy uses.
_LEFT_OUT = (
    *(
        "lib2to3",
        "test",
        "unittest",
        "pydoc_data",
        "distutils",
        "ensurepip",
        "idlelib",
        "asyncio",
        "email",
        "xml",
    ),
    *(
        "http",
        "urllib",
        "html",
        "xmlrpc",
        "multiprocessing",
        "sqlite3",
        "curses",
        "dbm",
        "wsgiref",
        "config-*",
    ),
    *("cp*.py", "cp*.pyc", "iso*.py", "iso*.pyc", "mac_*", "_pydecimal*", "_sqlite3*", "_dbm*", "readline*"),
    *(
        "_ssl*",
        "_curses*",
        "_codecs_*",
        "_decimal*",
        "nis*",
        "_elementtree*",
        "pyexpat*",
        "turtle*",
        "pydoc*",
    ),
)
_INIT = """#!/usr/bin/python3.11 -IS
import ctypes, os, sys, time
libc = ctypes.CDLL(None, use_errno=True)
os.environ.update(PATH="/usr/sbin:/usr/bin:/sbin:/bin", HOME="/root", LANG="C.UTF-8")
for kind, place in (("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev"), ("devpts", "/dev/pts"),
                    ("tmpfs", "/run"), ("tmpfs", "/tmp"), ("tmpfs", "/dev/shm")):
    os.makedirs(place, exist_ok=True)
    libc.mount(kind.encode(), place.encode(), kind.encode(), 0, None)
os.makedirs("/disk", exist_ok=True)
for path in open("/modules").read().split():
    with open(path, "rb") as module:
        libc.syscall(313, module.fileno(), b"", 0)  # finit_module
os.system("ip link set lo up; mount -t ext4 /dev/vda3 /disk")
sys.stdout.write("small guest is up\\n")
sys.stdout.flush()
if "ticks" in open("/proc/cmdline").read() and os.fork() == 0:  # signs of life for a QEMU without an agent
    while True:
        os.write(1, b"tick\\n")
        time.sleep(0.05)
agent = "import sys; sys.path.insert(0, '/usr/lib/bough'); "
agent += "from bough.guest.agent_keeper import main; sys.exit(main([]))"
if os.fork() == 0:
    os.execv("/usr/bin/python3.11", ["python3", "-IS", "-c", agent])
while True:
    try:
        os.wait()
    except ChildProcessError:
        break
"""
_GRUB = f"""set timeout=0
menuentry small {{
    linux /vmlinuz {CMDLINE}
    initrd /initrd.img
}}
"""
_POWER = """#!/usr/bin/python3.11 -IS
import ctypes, os
os.sync()
ctypes.CDLL(None).reboot({command})
"""
_POWER_OFF, _RESTART = 0x4321FEDC, 0x01234567


@dataclass(frozen=True)
class SmallGuest:
    """The files of a small guest. `disk` has a boot loader, and the same kernel and initrd."""

    kernel: Path
    initrd: Path
    disk: Path


def build_small_guest(image: Path, target: Path) -> SmallGuest:
    """Make the files in `target` from the disk of a Debian image of this bough. Takes some seconds.

    Raises:
        subprocess.CalledProcessError: debugfs or the image's loader failed.
    """
    target.mkdir(parents=True, exist_ok=True)
    made = SmallGuest(target / "vmlinuz", target / "initrd.img", target / "small.raw")
    with tempfile.TemporaryDirectory(prefix=".small-", dir=target) as work:
        source, root = Path(work) / "source", Path(work) / "root"
        release = _extract(image, source)
        shutil.copyfile(source / f"boot/vmlinuz-{release}", made.kernel)
        _fill(source, root, release)
        archive = b"".join(_cpio(root))
        made.initrd.write_bytes(zstandard.ZstdCompressor(level=10, threads=-1).compress(archive))
        _write_disk(image, made, Path(work) / "disk")
    for path in (made.kernel, made.initrd, made.disk):
        path.chmod(0o644)
    return made


def _write_disk(image: Path, made: SmallGuest, root: Path) -> None:
    """Write a disk with the image's boot loader and partitions, and another root file system."""
    (root / "boot/grub").mkdir(parents=True)
    for path in (made.kernel, made.initrd):
        shutil.copyfile(path, root / path.name)
    _write(root / "boot/grub/grub.cfg", _GRUB)
    with image.open("rb") as source, made.disk.open("wb") as target:
        target.write(source.read(ROOT_OFFSET))
        source.seek(-MIB, os.SEEK_END)
        target.seek(source.tell())
        target.write(source.read())
    make = [_find("mke2fs"), "-q", "-F", "-t", "ext4", "-J", "size=4", "-E", f"offset={ROOT_OFFSET}"]
    subprocess.run([*make, "-d", root, made.disk, "128M"], check=True, capture_output=True)


def _extract(image: Path, source: Path) -> str:
    """Copy the needed directories of the image's root file system. Return the kernel's release."""
    place = f"{image}?offset={ROOT_OFFSET}"
    names = [line.split("/")[5] for line in _debugfs(place, "ls -p /usr/lib/modules").split()]
    release = next(name for name in names if not name.startswith("."))
    modules = f"usr/lib/modules/{release}"
    wanted = ["boot", "usr/bin", "usr/sbin", "usr/lib64", _LIBRARIES, _PYTHON, modules]
    for path in wanted:
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        _debugfs(place, f"rdump /{path} {(source / path).parent}")
    return release


def _debugfs(place: str, command: str) -> str:
    words = [_find("debugfs"), "-R", command, place]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout


def _find(program: str) -> str:
    return shutil.which(program, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin") or program


def _fill(source: Path, root: Path, release: str) -> None:
    for name in ("usr/bin", "usr/lib64", _LIBRARIES, "etc", "root", "var/tmp", "usr/sbin"):
        (root / name).mkdir(parents=True)
    for name in ("bin", "sbin", "lib", "lib64"):
        (root / name).symlink_to(f"usr/{name}")
    shutil.copytree(
        source / _PYTHON, root / _PYTHON, symlinks=True, ignore=shutil.ignore_patterns(*_LEFT_OUT)
    )
    _copy_programs(source, root)
    (root / "usr/bin/python3").symlink_to("python3.11")
    modules = list(_modules(source / f"usr/lib/modules/{release}"))
    for number, path in enumerate(modules):
        shutil.copyfile(path, root / f"{number:02}-{path.name}")
    _write(root / "modules", "\n".join(f"/{number:02}-{path.name}" for number, path in enumerate(modules)))
    _write(root / "init", _INIT, 0o755)
    _write(root / "usr/sbin/poweroff", _POWER.format(command=_POWER_OFF), 0o755)
    _write(root / "usr/sbin/reboot", _POWER.format(command=_RESTART), 0o755)
    _write(root / "etc/passwd", "root:x:0:0:root:/root:/bin/sh\ndev:x:1000:1000::/tmp:/bin/sh\n")
    _write(root / "etc/group", "root:x:0:\ndev:x:1000:\n")
    _write(root / "etc/hosts", "127.0.0.1 localhost\n")
    _write(root / "etc/machine-id", "0" * 32 + "\n")
    _write(root / "etc/hostname", "small\n")
    for file in agent_files():
        _write(root / file.path.lstrip("/"), file.content.decode(), file.mode)


def _copy_programs(source: Path, root: Path) -> None:
    """Copy the programs, and the libraries that the image's own loader finds for them."""
    loader, libraries = source / _LIBRARIES / "ld-linux-x86-64.so.2", source / _LIBRARIES
    needed = {_LOADER.rpartition("/")[2]}
    extensions = list((root / _PYTHON / "lib-dynload").glob("*.so"))
    for name in _PROGRAMS:
        found = next(path for place in ("bin", "sbin") if (path := source / f"usr/{place}/{name}").exists())
        shutil.copyfile(found.resolve(), root / f"usr/bin/{name}")
        (root / f"usr/bin/{name}").chmod(0o755)
    for path in [*(root / f"usr/bin/{name}" for name in _PROGRAMS), *extensions]:
        done = subprocess.run(
            [loader, "--library-path", libraries, "--list", path],
            capture_output=True,
            text=True,
            check=False,
        )
        needed |= {line.split(" => ")[0].strip() for line in done.stdout.splitlines() if " => " in line}
    for library in (libraries / Path(name).name for name in needed):
        if library.exists():
            shutil.copyfile(library.resolve(), root / _LIBRARIES / library.name)
            (root / _LIBRARIES / library.name).chmod(0o755)
    (root / "usr/lib64/ld-linux-x86-64.so.2").symlink_to(f"/{_LIBRARIES}/ld-linux-x86-64.so.2")


def _modules(place: Path) -> Iterator[Path]:
    """Yield the files of the modules, each after those that it needs (modules.dep of depmod(8))."""
    needs = {}
    for line in (place / "modules.dep").read_text().splitlines():
        module, _, others = line.partition(":")
        needs[module] = others.split()
    by_name = {Path(path).name.split(".")[0].replace("-", "_"): path for path in needs}
    seen: set[str] = set()
    for wanted in (by_name[name] for name in _MODULES if name in by_name):  # others are built in
        for path in [*reversed(needs[wanted]), wanted]:
            if path not in seen:
                seen.add(path)
                yield place / path


def _write(path: Path, text: str, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)


def _cpio(root: Path) -> Iterable[bytes]:
    """Yield an archive in the form "newc" (the kernel's initramfs/buffer-format document), owned by root."""
    yield _entry("dev", stat.S_IFDIR | 0o755)
    # Before init has mounted a devtmpfs, the kernel opens the console, and Python reads random numbers.
    for name, device in (("console", (5, 1)), ("null", (1, 3)), ("urandom", (1, 9))):
        yield _entry(f"dev/{name}", stat.S_IFCHR | 0o666, device=device)
    for path in sorted(root.rglob("*")):
        info, name = path.lstat(), str(path.relative_to(root))
        if path.is_symlink():
            yield _entry(name, stat.S_IFLNK | 0o777, os.fsencode(path.readlink()))
        elif path.is_dir():
            yield _entry(name, stat.S_IFDIR | 0o755)
        else:
            yield _entry(name, info.st_mode, path.read_bytes(), modified=int(info.st_mtime))
    yield _entry("TRAILER!!!", 0)


def _entry(
    name: str, mode: int, data: bytes = b"", *, device: tuple[int, int] = (0, 0), modified: int = 0
) -> bytes:
    path = os.fsencode(name) + b"\0"
    numbers = (0, mode, 0, 0, 1, modified, len(data), 0, 0, *device, len(path), 0)
    head = b"070701" + b"".join(b"%08X" % number for number in numbers) + path
    return _padded(head) + _padded(data)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
