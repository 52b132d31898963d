"""The plan of a capture, made before the long copy: what is copied, what is left out, what prevents it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bough.errors import InvalidInput
from bough.images.capture.facts import HostFacts, Mount
from bough.images.platforms import PLATFORMS
from bough.units import GIB, format_size

_ARCHITECTURES = {"i486": "i386", "i586": "i386", "i686": "i386", "amd64": "x86_64", "arm64": "aarch64"}
#: File systems on a host's own disks, whose files a copy can hold.
_OWN = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "jfs", "reiserfs", "nilfs2", "zfs", "vfat"})
#: File systems of the kernel, and of memory: each boot makes them anew.
_MADE_AT_BOOT = frozenset(
    {"proc", "sysfs", "devtmpfs", "devpts", "tmpfs", "ramfs", "cgroup", "cgroup2", "mqueue", "hugetlbfs"}
    | {"securityfs", "debugfs", "tracefs", "configfs", "pstore", "efivarfs", "bpf", "autofs", "rpc_pipefs"}
    | {"binfmt_misc", "fusectl", "selinuxfs", "nsfs", "fuse.lxcfs", "fuse.gvfsd-fuse", "fuse.portal"}
)
#: Directories of which a copy has the directory and not the content.
_NEVER = ("/proc", "/sys", "/dev", "/run", "/tmp", "/lost+found", "/.bough")
_LEAST_DISK = 8 * GIB
_SPARE = 2 * GIB
#: From this size on a disk does not fit into the largest image.
_MOST_DISK = 2048 * GIB
_PATTERN = re.compile(r"[^\0\n]{1,4096}")


@dataclass(frozen=True)
class CapturePlan:
    """A capture that can begin.

    Attributes:
        arch: architecture of the image.
        copied: the file systems to copy, the root first. Each is copied without the ones mounted below it.
        excluded: patterns for rsync, as of the root of the host.
        used_bytes: sum of the file systems' bytes in use. files: number of their files.
        disk_bytes: size of the image's disk.
        notes: sentences about what the copy will lack or have otherwise.
    """

    arch: str
    copied: tuple[Mount, ...]
    excluded: tuple[str, ...]
    used_bytes: int
    files: int
    disk_bytes: int
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return {
            "arch": self.arch,
            "copied": [{"point": one.point, "type": one.kind, "device": one.device} for one in self.copied],
            "excluded": list(self.excluded),
            "used_bytes": self.used_bytes,
            "files": self.files,
            "disk_bytes": self.disk_bytes,
            "notes": list(self.notes),
        }


def make_plan(facts: HostFacts, exclude: Sequence[str] = (), disk_bytes: int | None = None) -> CapturePlan:
    """Return the plan for a host.

    Args:
        exclude: patterns of rsync(1), by the user.
        disk_bytes: size of the disk, by the user.

    Raises:
        InvalidInput: the host cannot be captured. The message has every reason.
    """
    problems = _find_problems(facts, exclude)
    copied, notes = _choose_mounts(facts)
    used = sum(facts.used.get(mount.point, 0) for mount in copied)
    least = _round_up(max(_LEAST_DISK, used + used // 4 + _SPARE))
    if disk_bytes is not None and disk_bytes < used + _SPARE // 2:
        problems.append(
            f"a disk of {format_size(disk_bytes)} is too small: {format_size(used)} are in use, "
            f"and {format_size(_SPARE // 2)} stay free"
        )
    if (disk_bytes or least) > _MOST_DISK:
        problems.append(f"{format_size(used)} are in use, more than an image can hold; use --exclude")
    if problems:
        raise InvalidInput(f"the host {facts.hostname or '?'} cannot be captured: {'; '.join(problems)}")
    return CapturePlan(
        arch=_ARCHITECTURES.get(facts.machine, facts.machine),
        copied=tuple(copied),
        excluded=(*(f"{place}/*" for place in _NEVER), *_bind_patterns(facts, copied), *exclude),
        used_bytes=used,
        files=sum(facts.files.get(mount.point, 0) for mount in copied),
        disk_bytes=disk_bytes or least,
        notes=(*notes, *_storage_notes(facts, copied), *_driver_notes(facts)),
    )


def _find_problems(facts: HostFacts, exclude: Sequence[str]) -> list[str]:
    problems = []
    arch = _ARCHITECTURES.get(facts.machine, facts.machine)
    if arch not in PLATFORMS:
        problems.append(f"its processor {facts.machine!r} is none of {', '.join(PLATFORMS)}")
    if facts.uid != 0:
        problems.append(
            "the files of other users need root: log in as root, or allow sudo without a password"
        )
    if "rsync" not in facts.programs:
        problems.append("it lacks rsync, which reads its files: install it there")
    if facts.container not in ("", "none"):
        problems.append(
            f"it is a container ({facts.container}) without a kernel; `bough image pull` takes its image"
        )
    elif not facts.images:
        problems.append("it has no kernel below /boot: another machine boots it")
    if not any(mount.point == "/" for mount in facts.mounts):
        problems.append("its table of mounts has no root")
    bad = [pattern for pattern in exclude if not _PATTERN.fullmatch(pattern)]
    if bad:
        problems.append(f"{bad[0][:80]!r} is not a pattern for --exclude")
    return problems


def _choose_mounts(facts: HostFacts) -> tuple[list[Mount], list[str]]:
    """Return the file systems to copy, and sentences about those left out."""
    chosen: dict[str, Mount] = {}
    notes = []
    for mount in facts.mounts:
        if mount.kind in _MADE_AT_BOOT or any(is_below(mount.point, place) for place in _NEVER):
            continue
        if mount.kind not in _OWN and mount.point != "/":
            notes.append(f"{mount.point} ({mount.kind} from {mount.device}) is left out")
        elif not _is_bind(mount, facts.mounts):
            chosen[mount.point] = mount  # a later mount at the same place hides the earlier one
    ordered = sorted(chosen.values(), key=lambda mount: (mount.point.count("/"), mount.point))
    return sorted(ordered, key=lambda mount: mount.point != "/"), notes


def _is_bind(mount: Mount, mounts: Sequence[Mount]) -> bool:
    """Return whether another mount shows the same files: a bind mount."""
    if mount.point == "/":
        return False
    same = [one for one in mounts if one.numbers == mount.numbers and one is not mount]
    before = [one for one in same if mounts.index(one) < mounts.index(mount)]
    # A subvolume of btrfs is a file system of its own, whose directory is not below another mounted one.
    return any(is_below(mount.root, one.root) for one in same if one.root != mount.root) or any(
        one.root == mount.root for one in before
    )


def _bind_patterns(facts: HostFacts, copied: Sequence[Mount]) -> list[str]:
    """Return patterns for the content of bind mounts: rsync sees no border there."""
    points = {mount.point for mount in copied}
    return [
        f"{_escape(mount.point)}/*"
        for mount in facts.mounts
        if mount.kind in _OWN and mount.point not in points and _is_bind(mount, facts.mounts)
    ]


def _escape(path: str) -> str:
    return re.sub(r"([*?\[\\])", r"\\\1", path)


def is_below(path: str, directory: str) -> bool:
    """Return whether `path` is `directory`, or below it."""
    return path == directory or path.startswith(directory.rstrip("/") + "/")


def _storage_notes(facts: HostFacts, copied: Sequence[Mount]) -> list[str]:
    notes = []
    for mount in copied:
        kinds = facts.layers.get(mount.device, set())
        if "crypt" in kinds:
            notes.append(f"{mount.point} is encrypted there; the image is not encrypted")
        if mount.kind not in ("ext4", "vfat"):
            notes.append(f"{mount.point} is {mount.kind} there, and ext4 in the image")
    apart = [mount.point for mount in copied if mount.point != "/" and mount.kind != "vfat"]
    if apart:
        notes.append(
            f"{', '.join(apart)}: file systems of their own there, directories of the root in the image"
        )
    if any(kind in kinds for kinds in facts.layers.values() for kind in ("lvm", "raid0", "raid1", "raid5")):
        notes.append("volume groups and RAID are not copied: the image has one plain disk")
    if facts.swap_bytes:
        notes.append(f"its swap of {format_size(facts.swap_bytes)} is left out")
    return notes


def _driver_notes(facts: HostFacts) -> list[str]:
    """Return a sentence if the host's kernel lacks the drivers of bough's default hardware."""
    if not facts.drivers:
        return []
    lacking = [name for name in ("virtio_blk", "virtio_net") if name not in facts.drivers]
    if not lacking:
        return []
    return [f"its kernel {facts.kernel} lacks {', '.join(lacking)}: machines of the image get older hardware"]


def _round_up(size_bytes: int) -> int:
    return -(-size_bytes // GIB) * GIB
