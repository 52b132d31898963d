"""What can be built from packages, as data."""

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

SCRIPTS = Path(__file__).parent / "debian"

#: A small Debian that a person is glad to log in to.
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
#: Timers that wake an idle machine, and a login prompt on a screen that is not there.
_DISABLED = (
    *("apt-daily.timer", "apt-daily-upgrade.timer", "e2scrub_reap.service", "e2scrub_all.timer"),
    *("fstrim.timer",),
)
#: What a virtual machine has no use for; each costs its boot a process or more.
_MASKED = (
    *("getty@tty1.service", "systemd-repart.service", "systemd-pstore.service", "systemd-firstboot.service"),
    *("modprobe@drm.service", "modprobe@efi_pstore.service", "systemd-fsckd.socket", "systemd-fsckd.service"),
    *("systemd-initctl.socket", "systemd-journald-audit.socket"),
    # While networkd is being stopped, systemd discards what comes on the netlink socket that it gave it
    # (socket_enter_running() of its socket.c). One that still starts then waits 25 s and more for its answer,
    # and with it a power-off in the boot. networkd opens a socket of its own where it is given none.
    "systemd-networkd.socket",
)
_MASKED_GENERATORS = (
    *("systemd-gpt-auto-generator", "systemd-hibernate-resume-generator", "systemd-rc-local-generator"),
    *("systemd-system-update-generator",),
)
#: Packages that make, check and grow a file system that is not the usual one.
TOOLS_OF = {"xfs": "xfsprogs", "btrfs": "btrfs-progs"}


@dataclass(frozen=True)
class Recipe:
    """Attributes:
    label: what its images are called: debian:12.
    kernel: the kernel's package, in Debian's naming of architectures.
    agent: it contains the guest agent.
    sources: of apt, beside Debian's.
    file_systems: what its kernel finds at boot, and has the tools of.
    recommending: packages that are installed with what they recommend; the others are without.
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
        """What is asked for by name."""
        return tuple(dict.fromkeys((*self.plain_packages, *self.recommending)))

    @property
    def plain_packages(self) -> tuple[str, ...]:
        tools = (TOOLS_OF[name] for name in self.file_systems)
        return tuple(dict.fromkeys((self.kernel, *self.packages, *tools)))

    def digest(self) -> str:
        """Of everything that this recipe puts into an image, the packages' versions aside."""
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
    """Raises NotFound, with the nearest label that there is a recipe for, or the architectures it is for."""
    if reference not in LABELS:
        close = get_close_matches(reference, LABELS, n=1)
        hint = (
            f"did you mean '{close[0]}'?"
            if close
            else f"can be built: {', '.join(LABELS)}; bough image search"
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
    # From 12 on a package of its own; before, a part of systemd.
    resolved = () if version == "11" else ("systemd-resolved",)
    return replace(recipe, packages=(*_PACKAGES, platform.initramfs, *resolved))
