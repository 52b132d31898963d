"""The accelerators of this host, found by running a guest on each.

/dev/kvm can exist, be accessible, answer every query, and still run no guest. An accelerator counts as usable
only after a probe guest has completed on it, in the jail, within a bounded time.
"""

from __future__ import annotations

import dataclasses
import os
import re
import tempfile
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bough.errors import HostLacks
from bough.paths import Home
from bough.qemu import arch as arch_table
from bough.qemu import probe_guest
from bough.qemu.arch import Architecture, architecture
from bough.qemu.binary import QemuBinary
from bough.qemu.facts import cached_fact
from bough.qemu.jail import Jail, Sight, render_jail
from bough.qemu.jail_probe import probe_uid
from bough.qemu.questions import Done, Watched, ask, run_program


@dataclass(frozen=True)
class Patience:
    """Processor time for the probe guest, in seconds.

    Attributes:
        start_s: for QEMU's start, until the guest tells that it runs: most of the time on a slow nested KVM.
        run_s: from then on: 0.1 s on real KVM, a minute on a KVM that emulates each instruction.
    """

    start_s: float
    run_s: float


#: One entry per attempt. TCG always works, only slowly.
_ATTEMPTS = {
    "kvm": (Patience(20.0, 2.0), Patience(60.0, 8.0)),
    "tcg": (Patience(20.0, 20.0), Patience(60.0, 60.0)),
}
#: End of one attempt, however busy the host is.
_ATTEMPT_MOST_S = 120.0
#: Validity of "KVM does not work": if the host may have been the reason, and otherwise.
_IN_DOUBT_LASTS_S = 600.0
_SLOW_LASTS_S = 86400.0
_KVM = "/dev/kvm"


@dataclass(frozen=True)
class Accelerator:
    """Attributes:
    detail: run time of the probe guest, or the reason of the failure.
    cpu_model: the model for "auto".
    cpu_models: the named models with all features on this host; empty: unknown.
    tried: a probe guest started and did not complete: an opinion, not a fact.
    refused: the host has the accelerator, and denies access.
    lasts_s: validity, if shorter than the host's boot.
    """

    name: str
    usable: bool
    detail: str
    cpu_model: str
    cpu_models: tuple[str, ...] = ()
    tried: bool = False
    refused: bool = False
    lasts_s: float | None = None

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


async def probe_accelerators(
    qemu: QemuBinary, jail: Jail, home: Home, *, refresh: bool = False
) -> dict[str, Accelerator]:
    """Return the accelerators by name, fastest first. Probed once per boot of the host, usually in 0.2 s. A
    failed probe of KVM is repeated later.
    """

    async def find() -> Any:
        return [(await _probe(name, qemu, jail, home)).to_dict() for name in ("kvm", "tcg")]

    # Another version of bough may choose other CPU models, and find out other things.
    files = [qemu.path, _KVM, jail.bwrap or "bwrap", arch_table.__file__, __file__]
    name = f"accelerators-{qemu.arch}"
    known = await cached_fact(home, name, files, find, refresh=refresh, lasts_s=_lasts_s)
    return {
        entry["name"]: Accelerator(**entry | {"cpu_models": tuple(entry["cpu_models"])}) for entry in known
    }


def _lasts_s(found: list[dict[str, Any]]) -> float | None:
    return min((entry["lasts_s"] for entry in found if entry["lasts_s"] is not None), default=None)


async def _probe(name: str, qemu: QemuBinary, jail: Jail, home: Home) -> Accelerator:
    row = architecture(qemu.arch)
    if name == "tcg":
        return await _run_guest(name, row.tcg_cpu, qemu, jail, home)
    try:
        missing = _kvm_missing(qemu, jail)
        cpus = [] if missing else (await ask(qemu, "kvm", "query-cpu-definitions"))[0]
    except HostLacks as error:
        missing = error.message
    if missing:
        has_it = os.uname().machine in row.hosts and Path(_KVM).exists()
        return Accelerator(name, False, missing, "", refused=has_it)
    complete = complete_cpus(cpus)
    # If no model is complete, the guest gets the oldest one.
    model = newest_complete_cpu(row, complete) or row.kvm_cpus[-1]
    found = await _run_guest(name, model, qemu, jail, home)
    return dataclasses.replace(found, cpu_models=complete)


def _kvm_missing(qemu: QemuBinary, jail: Jail) -> str | None:
    """Return why KVM need not be tried at all."""
    host = os.uname().machine
    if host not in architecture(qemu.arch).hosts:
        return f"this host is {host}, not {qemu.arch}"
    if not Path(_KVM).exists():
        return f"{_KVM} is missing: {_why_no_device()}"
    if not _may_open_kvm(jail):
        return f"{_KVM} may not be opened by the user that QEMU runs as"
    return None


def _why_no_device() -> str:
    if kvm_module() is None:
        return "the processor has no hardware virtualization (vmx, svm), or the firmware switched it off"
    return "its module is not loaded"


def kvm_module() -> str | None:
    """Return the kernel module for the virtualization of the host's processor; None: no virtualization."""
    found = re.search(r"\b(vmx|svm)\b", Path("/proc/cpuinfo").read_text())
    return {"vmx": "kvm_intel", "svm": "kvm_amd"}[found[1]] if found else None


def _may_open_kvm(jail: Jail) -> bool:
    if probe_uid() is None or jail.setpriv is None:
        return os.access(_KVM, os.R_OK | os.W_OK)
    info = Path(_KVM).stat()  # the machine's user joins the device's group, unless the group is root's
    return info.st_mode & 0o006 == 0o006 or (info.st_mode & 0o060 == 0o060 and info.st_gid != 0)


def newest_complete_cpu(arch: Architecture, complete: Collection[str]) -> str | None:
    """Return the newest CPU for "auto" whose model's features the accelerator has."""
    return next((cpu for cpu in arch.kvm_cpus if cpu.partition(",")[0] in complete), None)


def complete_cpus(definitions: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    """Return the models that the accelerator supports with all features."""
    return tuple(entry["name"] for entry in definitions if entry.get("unavailable-features") == [])


async def _run_guest(name: str, cpu: str, qemu: QemuBinary, jail: Jail, home: Home) -> Accelerator:
    async def attempt(watched: Watched) -> Done | None:
        return await _run_guest_once(name, cpu, qemu, jail, home, watched)

    return await try_guest(name, cpu, qemu.arch, attempt)


async def try_guest(
    name: str, cpu: str, arch: str, attempt: Callable[[Watched], Awaitable[Done | None]]
) -> Accelerator:
    """Run the probe guest with increasing patience, until it completes or has had enough processor time."""
    tells_start = probe_guest.PROBE_GUESTS[arch].tells_start
    for patience in _ATTEMPTS[name]:
        start_s = patience.start_s if tells_start else None
        watch = Watched(patience.run_s, most_s=_ATTEMPT_MOST_S, start_s=start_s)
        done = await attempt(watch)
        if done is not None:
            return _judge(name, cpu, arch, done, watch.took_s)
        if watch.had_its_time:
            why = _too_slow(name, f"{watch.used_s:.1f} s of processor time")
            return Accelerator(name, False, why, cpu, tried=True, lasts_s=_SLOW_LASTS_S)
    why = f"a probe guest did not finish within {watch.took_s:.0f} s on a busy host; it is tried again later"
    return Accelerator(name, False, why, cpu, tried=True, lasts_s=_IN_DOUBT_LASTS_S)


async def _run_guest_once(
    name: str, cpu: str, qemu: QemuBinary, jail: Jail, home: Home, watch: Watched
) -> Done | None:
    with tempfile.NamedTemporaryFile(dir=home.incoming, prefix="probe-") as firmware:
        firmware.write(probe_guest.PROBE_GUESTS[qemu.arch].firmware)
        firmware.flush()
        Path(firmware.name).chmod(0o644)
        argv = _render_probe(name, cpu, qemu, firmware.name)
        devices = (_KVM,) if name == "kvm" else ()
        sight = Sight(qemu.path, read_only=(firmware.name,), devices=devices)
        return await run_program(render_jail(jail, sight, argv, uid=probe_uid()), watch)


def _judge(name: str, cpu: str, arch: str, done: Done, took_s: float) -> Accelerator:
    if done.status == probe_guest.PROBE_GUESTS[arch].exit_status and probe_guest.TOKEN in done.stdout:
        return Accelerator(name, True, f"a probe guest ran in {took_s:.2f} s", cpu)
    last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2][:300]
    why = f"a probe guest did not run: {last or f'status {done.status}'}"
    # Another hypervisor may be using the processor's virtualization (EBUSY).
    return Accelerator(name, False, why, cpu, tried=True, lasts_s=_IN_DOUBT_LASTS_S)


def _too_slow(name: str, time: str) -> str:
    why = f"a probe guest did not finish in {time}"
    if name == "kvm" and kvm_module() is None:
        why += f": {_KVM} exists, but the processor has no hardware virtualization (vmx, svm)"
    return why


def _render_probe(accelerator: str, cpu: str, qemu: QemuBinary, firmware: str) -> list[str]:
    return [
        *(qemu.path, "-nodefaults", "-no-user-config", "-display", "none"),
        *("-machine", f"{architecture(qemu.arch).probe_machine},accel={accelerator}"),
        *("-cpu", cpu, "-m", "16M", "-bios", firmware),
        *("-chardev", "stdio,id=token,signal=off"),
        *probe_guest.PROBE_GUESTS[qemu.arch].devices,
    ]
