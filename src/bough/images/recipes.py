"""Recipes for images from Debian's packages, as data."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from pathlib import Path

from bough.errors import NotFound
from bough.guest.install import agent_files
from bough.images.platforms import platform_of
from bough.spec import SourceSpec
from bough.spec.container_name import suggest_container

SCRIPTS = Path(__file__).parent / "debian"

#: A small Debian for interactive use.
_PACKAGES = (
    *(
        "passwd",
        "login",
        "mount",
        "systemd-sysv",
        "udev",
        "dbus",
        "libpam-systemd",
        "openssh-server",
        "python3",
    ),
    *("iproute2", "iputils-ping", "procps", "curl", "ca-certificates", "sudo", "less", "vim-tiny", "nano"),
    *("kmod", "fdisk", "e2fsprogs", "netbase", "rsync", "xz-utils", "zstd", "bash-completion"),
    "sshfs",
)
#: Timers that wake an idle machine.
_DISABLED = (
    *("apt-daily.timer", "apt-daily-upgrade.timer", "e2scrub_reap.service", "e2scrub_all.timer"),
    *("fstrim.timer",),
)
#: Units that a virtual machine does not need. Each adds a process or more to the boot.
_MASKED = (
    *("getty@tty1.service", "systemd-repart.service", "systemd-pstore.service", "systemd-firstboot.service"),
    *("modprobe@drm.service", "modprobe@efi_pstore.service", "systemd-fsckd.socket", "systemd-fsckd.service"),
    *("systemd-initctl.socket", "systemd-journald-audit.socket"),
    # While networkd is being stopped, systemd discards messages on networkd's netlink socket from this unit
    # (socket_enter_running() in socket.c). A networkd that is still starting then waits 25 s or more for
    # an answer, and delays a power-off during the boot. Without this unit, networkd opens its own socket.
    "systemd-networkd.socket",
)
_MASKED_GENERATORS = (
    *("systemd-gpt-auto-generator", "systemd-hibernate-resume-generator", "systemd-rc-local-generator"),
    *("systemd-system-update-generator",),
)
#: Packages that make, check and grow file systems other than ext4.
TOOLS_OF = {"xfs": "xfsprogs", "btrfs": "btrfs-progs"}


@dataclass(frozen=True)
class Recipe:
    """The ingredients of an image.

    Attributes:
        label: label of the images, like debian:12.
        kernel: the kernel's package, in Debian's naming of architectures.
        agent: the image contains the guest agent.
        sources: further apt sources.
        file_systems: file systems whose modules are in the initrd and whose tools are installed.
        recommending: packages that are installed with their recommended packages; all others are without.
    """

    label: str
    os: str
    version: str
    suite: str
    arch: str
    kernel: str
    packages: tuple[str, ...] = _PACKAGES
    disabled_units: tuple[str, ...] = _DISABLED
    masked_units: tuple[str, ...] = _MASKED
    masked_generators: tuple[str, ...] = _MASKED_GENERATORS
    grub_packages: tuple[str, ...] = ()
    agent: bool = True
    cloud_init: bool = False
    sources: tuple[SourceSpec, ...] = ()
    file_systems: tuple[str, ...] = ()
    recommending: tuple[str, ...] = ()

    @property
    def all_packages(self) -> tuple[str, ...]:
        """All packages that are requested by name."""
        return tuple(dict.fromkeys((*self.plain_packages, *self.recommending)))

    @property
    def plain_packages(self) -> tuple[str, ...]:
        tools = (TOOLS_OF[name] for name in self.file_systems)
        return tuple(dict.fromkeys((self.kernel, *self.packages, *tools)))

    def digest(self) -> str:
        """Return the digest of all inputs of an image, except for the versions of packages."""
        sources = [source.model_dump(mode="json") for source in self.sources]
        told = {**{f.name: getattr(self, f.name) for f in fields(self)}, "sources": sources}
        digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
        for path in sorted(SCRIPTS.rglob("*")):
            if path.is_file():
                digest.update(str(path.relative_to(SCRIPTS)).encode() + b"\0" + path.read_bytes() + b"\0")
        for file in agent_files() if self.agent else ():
            digest.update(file.path.encode() + b"\0" + file.content + b"\0")
        return digest.hexdigest()


_SUITES = {"11": "bullseye", "12": "bookworm", "13": "trixie", "testing": "testing", "sid": "sid"}
LABELS = tuple(f"debian:{version}" for version in _SUITES)


def recipe_for(reference: str, arch: str) -> Recipe:
    """Return the recipe for a label.

    Raises:
        NotFound: the hint has the nearest label, or the architectures of the recipe.
    """
    if reference not in LABELS:
        close = get_close_matches(reference, LABELS, n=1)
        hint = (
            f"did you mean '{close[0]}'?"
            if close
            else f"bough can build {', '.join(LABELS)}; for others: bough image search"
            + suggest_container(reference)
        )
        raise NotFound(f"no image or recipe is called {reference[:80]!r}", hint=hint, kind="image")
    platform = platform_of(reference, arch)
    version = reference.partition(":")[2]
    recipe = Recipe(
        label=reference,
        os="debian",
        version=version,
        suite=_SUITES[version],
        arch=arch,
        kernel=platform.kernel,
        grub_packages=platform.grub_packages,
    )
    # A separate package since Debian 12; in Debian 11 a part of systemd.
    resolved = () if version == "11" else ("systemd-resolved",)
    return replace(recipe, packages=(*_PACKAGES, platform.initramfs, *resolved))
