"""Packages of the programs that bough needs, for common package managers."""

from __future__ import annotations

import os
import shutil

_INSTALL = {
    "apt": "apt-get install {}",
    "dnf": "dnf install {}",
    "pacman": "pacman -S {}",
    "zypper": "zypper install {}",
}

#: Program -> package name for apt, dnf, pacman, zypper; None: not packaged.
_PACKAGES: dict[str, tuple[str | None, str | None, str | None, str | None]] = {
    "qemu-x86_64": ("qemu-system-x86", "qemu-system-x86", "qemu-system-x86", "qemu-x86"),
    "qemu-i386": ("qemu-system-x86", "qemu-system-x86", "qemu-system-x86", "qemu-x86"),
    "qemu-aarch64": ("qemu-system-arm", "qemu-system-aarch64", "qemu-system-aarch64", "qemu-arm"),
    "qemu-riscv64": ("qemu-system-misc", "qemu-system-riscv", "qemu-system-riscv", "qemu-extra"),
    "qemu-img": ("qemu-utils", "qemu-img", "qemu-img", "qemu-img"),
    "uefi-x86_64": ("ovmf", "edk2-ovmf", "edk2-ovmf", "qemu-ovmf-x86_64"),
    "uefi-i386": (None, "edk2-ovmf-ia32", "edk2-ovmf", None),
    "uefi-aarch64": ("qemu-efi-aarch64", "edk2-aarch64", "edk2-aarch64", "qemu-uefi-aarch64"),
    "uefi-riscv64": ("u-boot-qemu", "uboot-images-riscv64", None, "u-boot-qemu-riscv64smode"),
    "qemu-user": ("qemu-user-static", "qemu-user-static", "qemu-user-static", "qemu-linux-user"),
    "binfmt": ("qemu-user-static binfmt-support", "qemu-user-static", "qemu-user-static-binfmt", None),
    "mmdebstrap": ("mmdebstrap debian-archive-keyring", "mmdebstrap debian-keyring", None, None),
    "e2fsprogs": ("e2fsprogs",) * 4,
    "sfdisk": ("fdisk", "util-linux", "util-linux", "util-linux"),
    "mtools": ("mtools",) * 4,
    "mksquashfs": ("squashfs-tools", "squashfs-tools", "squashfs-tools", "squashfs"),
    "skopeo": ("skopeo",) * 4,
    "buildah": ("buildah",) * 4,
    "bubblewrap": ("bubblewrap",) * 4,
    "passt": ("passt",) * 4,
    "swtpm": ("swtpm",) * 4,
    "setpriv": ("util-linux",) * 4,
    "sftp-server": ("openssh-sftp-server", "openssh-server", "openssh", "openssh-server"),
    "newuidmap": ("uidmap", "shadow-utils", "shadow", "shadow"),
    "python": ("python3", "python3.11", "python", "python311"),
}

#: Not on PATH: directories of Debian and Ubuntu; Fedora; Arch, openSUSE and Alpine; others.
_SFTP_SERVERS = (
    *("/usr/lib/openssh/sftp-server", "/usr/libexec/openssh/sftp-server", "/usr/lib/ssh/sftp-server"),
    "/usr/libexec/sftp-server",
)


def find_sftp_server() -> str | None:
    """Return OpenSSH's sftp-server, which serves shared directories."""
    return next((path for path in _SFTP_SERVERS if os.access(path, os.X_OK)), None)


def render_fixes(need: str) -> dict[str, str]:
    """Return package manager -> command that installs `need`."""
    sudo = "" if os.geteuid() == 0 else "sudo "
    packages = zip(_INSTALL.items(), _PACKAGES[need], strict=True)
    return {manager: sudo + command.format(name) for (manager, command), name in packages if name}


def render_fix(need: str) -> str:
    """Return one line: the command for this host's package manager, or for each package manager if the host's
    is unknown.
    """
    fixes = render_fixes(need)
    here = {manager: command for manager, command in fixes.items() if shutil.which(manager)}
    return "install it: " + " | ".join((here or fixes).values())
