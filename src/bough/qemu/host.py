"""The host: resources, and missing parts (`bough doctor`)."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import pwd
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bough.errors import BoughError, HostLacks
from bough.paths import Home
from bough.progress import Progress, Report, ignore_progress
from bough.qemu.accelerators import Accelerator, kvm_module, probe_accelerators
from bough.qemu.arch import architecture
from bough.qemu.binary import OLDEST, QemuBinary, find_qemu
from bough.qemu.choice import find_uefi
from bough.qemu.jail import Jail, machine_uid, report_jail
from bough.qemu.jail_probe import probe_jail
from bough.qemu.packages import find_sftp_server, render_fixes
from bough.units import GIB, format_size


@dataclass(frozen=True)
class HostFacts:
    """Resources of the host. `memory_bytes` is the total, or the limit of bough's cgroup; `available_bytes`
    is free.
    """

    vcpus: int
    memory_bytes: int
    available_bytes: int
    free_disk_bytes: int
    arch: str


async def read_host_facts(home: Home) -> HostFacts:
    """Return the present resources."""
    memory = _read_meminfo()
    return HostFacts(
        vcpus=len(os.sched_getaffinity(0)),
        memory_bytes=min(memory["MemTotal"], _cgroup_memory_limit()),
        free_disk_bytes=_free_bytes(home.root),
        arch=os.uname().machine,
        available_bytes=memory["MemAvailable"],
    )


def _read_meminfo() -> dict[str, int]:
    lines = Path("/proc/meminfo").read_text().splitlines()
    pairs = (line.split(":") for line in lines)
    return {name: int(value.split()[0]) * 1024 for name, value in pairs}


def _cgroup_memory_limit() -> int:
    """Return the memory limit of the surrounding container, if any."""
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):
            return int(Path(file).read_text())
    return sys.maxsize


def _free_bytes(path: Path) -> int:
    while not path.exists():
        path = path.parent
    info = os.statvfs(path)
    return info.f_bavail * info.f_frsize


@dataclass(frozen=True)
class Check:
    """A part of the host, needed or usable by bough.

    Attributes:
        required: nothing works without the part; otherwise `detail` says what is missing then.
        fixes: package manager -> command for the installation; "any" for a command valid everywhere.
    """

    name: str
    ok: bool
    required: bool
    detail: str
    fixes: dict[str, str] = field(default_factory=dict)


async def run_doctor(
    home: Home, *, arch: str | None = None, probe: bool = True, report: Report = ignore_progress
) -> dict[str, Any]:
    """Return all facts about this host; JSON-able.

    Args:
        arch: check for machines of another architecture.
        probe: run the probe guests and try the jail again; False: only look at what is installed.
    """
    arch = arch or os.uname().machine
    report(Progress("looking at what is installed"))
    checks = await asyncio.to_thread(_check_installed, home, arch)
    accelerators: list[Accelerator] = []
    jail = Jail()
    try:
        qemu = find_qemu(arch)
        if probe:
            report(Progress("trying out the jail"))
            home.create()
            jail = await probe_jail(qemu, home, refresh=True)
            report(Progress("running a probe guest on each accelerator"))
            accelerators = list((await probe_accelerators(qemu, jail, home, refresh=True)).values())
            checks.append(_check_kvm(accelerators))
    except BoughError as error:
        checks.append(Check("QEMU starts", False, True, error.message))
    uid = machine_uid("doctor") if os.geteuid() == 0 else None
    network = shutil.which("passt") is None
    return {
        "checks": [dataclasses.asdict(check) for check in checks],
        "accelerators": [accelerator.to_dict() for accelerator in accelerators],
        "jail": [dataclasses.asdict(part) for part in report_jail(jail, uid=uid, network=network).parts]
        if probe
        else [],
    }


def _check_installed(home: Home, arch: str) -> list[Check]:
    checks = [
        _check_python(),
        _check_qemu(arch),
        _check_program("qemu-img", "qemu-img", "machines have no disks without it", required=True),
        _check_program("mmdebstrap", "mmdebstrap", "Debian images cannot be built without it"),
        _check_program("mke2fs", "e2fsprogs", "images cannot be built without it"),
        _check_program("debugfs", "e2fsprogs", "images cannot be built without it"),
        _check_program("sfdisk", "sfdisk", "images cannot be built without it"),
        _check_program("mcopy", "mtools", "UEFI images cannot be built without it"),
        _check_program("mksquashfs", "mksquashfs", "guests without a Python get no agent without it"),
        _check_program("skopeo", "skopeo", "container images (oci:NAME) cannot be pulled without it"),
        _check_program("buildah", "buildah", "Dockerfiles cannot be built without it"),
        _check_program("bwrap", "bubblewrap", "QEMU sees the host's files and processes without it"),
        _check_program(
            "passt",
            "passt",
            "uplinks are slower without it, and reach the host's loopback; networks have no uplink",
        ),
        _check_program("swtpm", "swtpm", "machines have no TPM without it"),
        _check_sftp_server(),
        _check_uefi(arch),
    ]
    checks += [_check_emulator(arch)] if os.uname().machine not in architecture(arch).hosts else []
    checks += [_check_setpriv()] if os.geteuid() == 0 else [_check_newuidmap(), _check_subuid()]
    return [*checks, _check_user_namespaces(), _check_space(home)]


def _check_python() -> Check:
    version = ".".join(map(str, sys.version_info[:3]))
    ok = sys.version_info >= (3, 11)
    return Check("Python >= 3.11", ok, True, version, {} if ok else render_fixes("python"))


def _check_qemu(arch: str) -> Check:
    name = f"QEMU >= {'.'.join(map(str, OLDEST))}"
    try:
        qemu: QemuBinary = find_qemu(arch)
    except HostLacks as error:
        return Check(name, False, True, error.message, render_fixes(f"qemu-{arch}"))
    except BoughError as error:
        return Check(name, False, True, error.message)
    return Check(name, True, True, f"{'.'.join(map(str, qemu.version))} at {qemu.path}")


def _check_program(program: str, need: str, without: str, *, required: bool = False) -> Check:
    # mke2fs and sfdisk are in sbin, which is not on every PATH.
    path = shutil.which(program, path=os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin")
    if path:
        return Check(program, True, required, path)
    return Check(program, False, required, f"not installed: {without}", render_fixes(need))


def _check_emulator(arch: str) -> Check:
    """Check that an emulator is installed. The image build tries the emulator: images are above the layer of
    this module.
    """
    names = (f"qemu-{arch}-static", f"qemu-{arch}")
    path = next(filter(None, map(shutil.which, names)), None)
    if path:
        return Check(names[0], True, False, f"{path}: runs programs of {arch} while images are built")
    without = f"not installed: images for {arch} cannot be built without it"
    return Check(names[0], False, False, without, render_fixes("qemu-user"))


def _check_uefi(arch: str) -> Check:
    row = architecture(arch)
    try:
        found = find_uefi(arch, f"{row.machine[0]}-7.2")
    except HostLacks as error:
        without = f"{error.message}: machines boot with BIOS only" if row.is_pc else error.message
        return Check("UEFI firmware", False, not row.is_pc, without, render_fixes(f"uefi-{arch}"))
    return Check("UEFI firmware", True, not row.is_pc, found.code)


def _check_sftp_server() -> Check:
    path = find_sftp_server()
    if path is not None:
        return Check("sftp-server", True, False, path)
    without = "not installed: no directory is shared with a machine without it"
    return Check("sftp-server", False, False, without, render_fixes("sftp-server"))


def _check_setpriv() -> Check:
    return _check_program("setpriv", "setpriv", "QEMU runs as root without it")


def _check_newuidmap() -> Check:
    return _check_program("newuidmap", "newuidmap", "only root can build images without it")


def _check_subuid() -> Check:
    user = user_name()
    missing = [file for file in ("/etc/subuid", "/etc/subgid") if not has_range(Path(file), user)]
    if not missing:
        return Check("subordinate user ids", True, False, f"{user} has a range of them")
    detail = f"{user} has none in {' and '.join(missing)}: images cannot be built"
    command = f"sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user}"
    return Check("subordinate user ids", False, False, detail, {"any": command})


def user_name() -> str:
    """Return the name of the user of this process. $USER may still name the user before a change of user."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:  # of a container without accounts
        return str(os.geteuid())


def has_range(file: Path, user: str) -> bool:
    try:
        entries = [line.split(":") for line in file.read_text().splitlines()]
    except OSError:
        return False
    return any(entry[0] in (user, str(os.getuid())) for entry in entries)


def _check_user_namespaces() -> Check:
    name = "user namespaces"
    for file, fix in (
        ("/proc/sys/kernel/unprivileged_userns_clone", "sudo sysctl kernel.unprivileged_userns_clone=1"),
        ("/proc/sys/user/max_user_namespaces", "sudo sysctl user.max_user_namespaces=65536"),
    ):
        with contextlib.suppress(OSError):
            if Path(file).read_text().strip() == "0":
                return Check(
                    name, False, False, f"switched off by {file}: ordinary users get no jail", {"any": fix}
                )
    restricted = Path("/proc/sys/kernel/apparmor_restrict_unprivileged_userns")
    with contextlib.suppress(OSError):
        if restricted.read_text().strip() == "1" and os.geteuid() != 0:
            allowed = "only to programs with an AppArmor profile; the jail tells whether bwrap has one"
            return Check(name, True, False, allowed)
    return Check(name, True, False, "allowed")


def _check_kvm(accelerators: list[Accelerator]) -> Check:
    kvm = next(accelerator for accelerator in accelerators if accelerator.name == "kvm")
    fixes = {}
    if "may not be opened" in kvm.detail:
        shared = "chgrp kvm /dev/kvm && chmod 0660 /dev/kvm"
        joined = f"sudo usermod --append --groups kvm {user_name()}"
        fixes = {"any": shared if os.geteuid() == 0 else f"{joined}, then log in again"}
    elif "not loaded" in kvm.detail:
        sudo = "" if os.geteuid() == 0 else "sudo "
        fixes = {"any": f"{sudo}modprobe {kvm_module()}"}
    detail = kvm.detail if kvm.usable else f"{kvm.detail}; machines are emulated (TCG), 10 to 30 times slower"
    return Check("KVM", kvm.usable, False, detail, fixes)


def _check_space(home: Home) -> Check:
    free = _free_bytes(home.root)
    ok = free > 4 * GIB
    detail = f"{format_size(free)} free below {home.root}" + ("" if ok else ": an image needs 4 GiB")
    return Check("disk space", ok, False, detail)
