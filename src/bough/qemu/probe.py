"""Version and abilities of this host's QEMU, found by running QEMU.

/dev/kvm can exist, be accessible, answer every query, and still run no guest. An accelerator counts as usable
only after a probe guest has completed on it, in the jail, within a bounded time.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from bough.errors import HostLacks
from bough.paths import Home
from bough.progress_watch import ProgressWatch, Stalled
from bough.qemu import arch as arch_table
from bough.qemu import probe_guest
from bough.qemu.arch import Architecture, architecture
from bough.qemu.argv import SANDBOX
from bough.qemu.cgroup import find_groups
from bough.qemu.facts import cached_fact
from bough.qemu.jail import Jail, Sight, machine_uid, render_jail
from bough.qemu.packages import render_fix
from bough.qemu.pid import Wrapped
from bough.qemu.subprocesses import end_subprocess, start_subprocess
from bough.qemu.syscalls import open_filter
from bough.tasks import end_tasks

OLDEST = (7, 2)
T = TypeVar("T")
S = TypeVar("S")


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
#: After this processor time an incomplete guest gets no further attempt.
_HAD_ITS_TIME = 0.75
#: Validity of "KVM does not work": if the host may have been the reason, and otherwise.
_IN_DOUBT_LASTS_S = 600.0
_SLOW_LASTS_S = 86400.0
_QUESTION_S = 20.0
_QUESTION_MOST_S = 120.0
_LOOK_EVERY_S = 0.1
_KVM = "/dev/kvm"


@dataclass(frozen=True)
class QemuBinary:
    path: str
    version: tuple[int, ...]
    arch: str


@dataclass(frozen=True)
class QemuFacts:
    """Versioned machine types and CPU models of the binary."""

    machine_types: tuple[str, ...]
    cpu_models: tuple[str, ...]


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


def find_qemu(arch: str) -> QemuBinary:
    """Return the QEMU for machines of `arch`.

    Raises:
        HostLacks: QEMU is missing or too old; `hint` has the command that installs it.
    """
    row = architecture(arch)
    path = next((found for name in row.qemu if (found := shutil.which(name))), None)
    if path is None:
        raise HostLacks(f"QEMU for {arch} ({row.qemu[0]}) is not installed", hint=render_fix(f"qemu-{arch}"))
    info = Path(path).stat()
    version = _read_version(path, info.st_mtime_ns)
    if version < OLDEST:
        text, oldest = ".".join(map(str, version)), ".".join(map(str, OLDEST))
        raise HostLacks(
            f"QEMU at {path} is {text}; {oldest} is the oldest that works", hint=render_fix(f"qemu-{arch}")
        )
    return QemuBinary(path, version, arch)


@lru_cache(maxsize=8)
def _read_version(path: str, _: int) -> tuple[int, ...]:
    try:
        done = subprocess.run([path, "--version"], capture_output=True, timeout=_QUESTION_MOST_S, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise HostLacks(f"{path} does not start: {error}", hint="install QEMU again") from error
    return parse_version(done.stdout.decode(errors="replace"))


def parse_version(text: str) -> tuple[int, ...]:
    """Return the version in "QEMU emulator version 7.2.22 (Debian ...)". Raises HostLacks for other text."""
    match = re.search(r"version (\d+)\.(\d+)(?:\.(\d+))?", text)
    if match is None:
        raise HostLacks(f"not a QEMU: it printed {text.strip()[:80]!r}", hint="bough doctor")
    return tuple(int(number) for number in match.groups(default="0"))


async def inspect_qemu(qemu: QemuBinary, home: Home) -> QemuFacts:
    """Return the facts about a QEMU. Raises HostLacks if QEMU does not start."""

    async def find() -> Any:
        machines, cpus = await _ask(qemu, "tcg", "query-machines", "query-cpu-definitions")
        return {
            "machine_types": sorted(entry["name"] for entry in machines if not entry.get("deprecated")),
            "cpu_models": sorted(entry["name"] for entry in cpus if not entry.get("deprecated")),
        }

    known = await cached_fact(home, f"qemu-{qemu.arch}", [qemu.path], find)
    return QemuFacts(tuple(known["machine_types"]), tuple(known["cpu_models"]))


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
        cpus = [] if missing else (await _ask(qemu, "kvm", "query-cpu-definitions"))[0]
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
    if _probe_uid() is None or jail.setpriv is None:
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
        return await _run(render_jail(jail, sight, argv, uid=_probe_uid()), watch)


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


def _probe_uid() -> int | None:
    return machine_uid("probe") if os.geteuid() == 0 else None


async def probe_jail(qemu: QemuBinary, home: Home, *, refresh: bool = False) -> Jail:
    """Return the host's jail, tried with the QEMU once per boot."""
    bwrap, setpriv = shutil.which("bwrap"), shutil.which("setpriv")

    async def find() -> Any:
        return (await _try_jails(qemu, bwrap, setpriv if os.geteuid() == 0 else None)).to_dict()

    files = [qemu.path, bwrap or "bwrap", setpriv or "setpriv"]
    known = Jail.from_dict(await cached_fact(home, f"jail-{qemu.arch}", files, find, refresh=refresh))
    # Not cached: the result depends on the service's cgroup, and a look is cheap.
    return dataclasses.replace(known, groups=find_groups())


async def _try_jails(qemu: QemuBinary, bwrap: str | None, setpriv: str | None) -> Jail:
    """Return the strictest jail that works."""
    refused: dict[str, str] = {}
    for wrapper in [bwrap, None] if bwrap else [None]:
        for own_proc in (True, False) if wrapper else (True,):
            for system_calls in (True, False):
                jail = Jail(wrapper, setpriv, own_proc, system_calls)
                why = await _try_jail(qemu, jail)
                if why is None:
                    return dataclasses.replace(jail, refused=tuple(_refusals(jail, bwrap, refused).items()))
                refused.setdefault("bwrap" if wrapper else "setpriv", why)
                if system_calls:
                    refused["system calls"] = why
    raise HostLacks(f"{qemu.path} does not start: {next(iter(refused.values()))}", hint="install QEMU again")


async def _try_jail(qemu: QemuBinary, jail: Jail) -> str | None:
    """Return None if QEMU starts in the jail; otherwise the error."""
    sandbox = ["-sandbox", SANDBOX] if jail.system_calls else []
    argv = [qemu.path, *_QUESTION, *sandbox, "-qmp", "stdio"]
    uid = _probe_uid() if jail.setpriv else None
    outer = open_filter() if jail.bwrap and jail.system_calls else None
    try:
        done = await _run(
            render_jail(jail, Sight(qemu.path), argv, uid=uid, filter_descriptor=outer),
            _question(),
            input_=_render_questions("quit"),
            pass_fds=() if outer is None else (outer,),
        )
    finally:
        if outer is not None:
            os.close(outer)
    if done is None:
        return "it did not end in time"
    return None if done.status == 0 else done.stderr.decode(errors="replace").strip()[-300:]


def _refusals(jail: Jail, bwrap: str | None, refused: dict[str, str]) -> dict[str, str]:
    """Return the reasons for the parts that `jail` lacks."""
    told = {}
    if jail.bwrap is None:
        why = refused.get("bwrap", "") if bwrap else "bubblewrap (bwrap) is not installed"
        told = dict.fromkeys(("files", "processes", "network"), why)
        if os.geteuid() != 0:
            told["user"] = why
    if os.geteuid() == 0 and jail.setpriv is None:
        told["user"] = "setpriv is not installed"
    if not jail.system_calls:
        told["system calls"] = refused.get("system calls", "")
    return told


# -- asking QEMU ------------------------------------------------------------------------------

_QUESTION = ("-nodefaults", "-no-user-config", "-display", "none", "-machine", "none")


async def _ask(qemu: QemuBinary, accelerator: str, *commands: str) -> list[Any]:
    """Return the answers of a QEMU without a machine. Raises HostLacks if it does not start."""
    argv = [qemu.path, *_QUESTION, "-accel", accelerator, "-qmp", "stdio"]
    done = await _run(argv, _question(), input_=_render_questions(*commands, "quit"))
    if done is None or done.status != 0:
        why = done.stderr.decode(errors="replace").strip()[-300:] if done else "it did not answer"
        raise HostLacks(f"{qemu.path} does not start with {accelerator}: {why}", hint="bough doctor")
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    # The first answer belongs to qmp_capabilities.
    return [answer["return"] for answer in answers if "return" in answer][1 : len(commands) + 1]


def _render_questions(*commands: str) -> bytes:
    return "".join(json.dumps({"execute": name}) for name in ("qmp_capabilities", *commands)).encode()


@dataclass(frozen=True)
class Done:
    status: int
    stdout: bytes
    stderr: bytes


class Watched:
    """A program with a bound on its processor time: the host may be busy.

    Args:
        quiet_s: processor time of the program; with `start_s`, from its first output on.
        start_s: processor time until its first output.
        most_s: the end of each of the two in any case.

    Attributes:
        heard: set at the first output.
        took_s: seconds until its end, or until bough gave up.
        used_s: processor time of the last part, with or without an output.
    """

    def __init__(self, quiet_s: float, *, most_s: float, start_s: float | None = None) -> None:
        self._quiet_s, self._start_s, self._most_s = quiet_s, start_s, most_s
        self._given_s = quiet_s
        self.heard = asyncio.Event()
        self.took_s = self.used_s = 0.0

    @property
    def had_its_time(self) -> bool:
        """Return whether the program, and not a busy host, used up the time."""
        return self.used_s > _HAD_ITS_TIME * self._given_s

    async def run(self, pid: int, work: Awaitable[T]) -> T:
        """Run the program. Raises Stalled."""
        program = Wrapped(pid)
        task = asyncio.ensure_future(work)
        task.add_done_callback(lambda _: self.heard.set())
        try:
            if self._start_s is not None:
                await self._watch(program, self._start_s, self.heard.wait())
            return await self._watch(program, self._quiet_s, task)
        finally:
            await end_tasks(task)

    async def _watch(self, program: Wrapped, quiet_s: float, work: Awaitable[S]) -> S:
        watch = ProgressWatch(quiet_s, most_s=self._most_s, work=program, look_every_s=_LOOK_EVERY_S)
        before_s, self._given_s = program.last_s, quiet_s
        try:
            return await watch.run(work)
        finally:
            self.took_s += watch.waited_s
            self.used_s = program.last_s - before_s


def _question() -> Watched:
    return Watched(_QUESTION_S, most_s=_QUESTION_MOST_S)


async def _run(
    argv: Sequence[str], watched: Watched, *, input_: bytes = b"", pass_fds: Sequence[int] = ()
) -> Done | None:
    """Return the output; None if time ran out. After a timeout or a cancelled call no process of the program
    is left.
    """
    questions = _filled_pipe(input_)
    try:
        # A separate session, to kill all processes: bubblewrap leaves the child alive.
        process = await start_subprocess(
            *argv,
            stdin=questions,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            pass_fds=tuple(pass_fds),
        )
    finally:
        os.close(questions)
    try:
        stdout, stderr = await watched.run(process.pid, _listen(process, watched.heard))
    except Stalled:
        return None
    finally:
        await end_subprocess(process)
    return Done(process.returncode or 0, stdout, stderr)


def _filled_pipe(content: bytes) -> int:
    """Return the read end of a pipe with all questions. A QEMU of a service that was killed then ends by
    itself at the last one, "quit": at the end of its input alone it would run on.
    """
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    try:
        os.set_blocking(write_end, False)  # the pipe holds 64 KiB; the questions have less than 1 KiB
        os.write(write_end, content)
    finally:
        os.close(write_end)
    return read_end


async def _listen(process: asyncio.subprocess.Process, heard: asyncio.Event) -> tuple[bytes, bytes]:
    """Return standard output and standard error when the process has ended."""

    async def read(stream: asyncio.StreamReader | None) -> bytes:
        data = bytearray()
        while stream is not None and (piece := await stream.read(65536)):
            data += piece
            if stream is process.stdout:
                heard.set()
        return bytes(data)

    stdout, stderr, _ = await asyncio.gather(read(process.stdout), read(process.stderr), process.wait())
    return stdout, stderr
