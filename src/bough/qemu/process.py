"""Life of a QEMU process: start in a jail, watch, adoption by a later service, end.

    service ── sh (the waiter; a session of its own) ──┬─ sh ─ bwrap ─ bwrap ─ qemu
                                                       └─ sh (keeps the end of QEMU's output)

The waiter outlives the service. These files of the waiter are below the machine's log/:

    process     the host's boot id; pid and start time of the waiter and of the jail's outermost process
    lock        locked (flock) while any process of the session lives; a free lock means that none lives
    qemu.log    QEMU's last output, 128 KiB at most. qemu.log.old has the 128 KiB before that
    exit        QEMU's exit status, after its end

A kill of the service at any moment loses nothing. The waiter also keeps the names of QEMU's sockets: see
sockets.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from bough.errors import BoughError, HostLacks, MachineFailed, QmpLost, WrongState
from bough.networks.uplink import begin_uplink
from bough.paths import MachinePaths
from bough.progress_watch import ProgressWatch, Stalled
from bough.qemu.argv import render_argv
from bough.qemu.cgroup import (
    create_groups,
    limits_memory,
    remove_groups,
    share_last,
    stand_back,
)
from bough.qemu.disk_bus import device_path
from bough.qemu.jail import JailReport, Sight, render_jail, report_jail
from bough.qemu.pid import Pid, Wrapped, read_boot_id
from bough.qemu.plan import Plan
from bough.qemu.qmp import Qmp
from bough.qemu.sockets import clear, hold, listen, name_again, remove, socket_paths
from bough.qemu.switch_ports import clear_ports, make_ports, open_ports, seen_ports
from bough.qemu.syscalls import open_filter
from bough.qemu.tpm import start_tpm
from bough.storage import read_tail
from bough.tasks import finish

#: QEMU's processor time or idle time until it answers; usually 0.05 s.
GREETING_TIMEOUT_S = 30.0
GREETING_MOST_S = 600.0
KILL_TIMEOUT_S = 10.0
#: How long a busy host may take from the lock of a new QEMU to QEMU itself; usually 0.02 s.
_VISIBLE_S = 12.0
STDERR_BYTES = 64 * 1024

#: Name of the memory file among the descriptors that QEMU gets.
MEMORY = "memory"

_LOG_PART_BYTES = 128 * 1024
_HIGH_DESCRIPTOR = 255
_SWALLOWED_BYTES = 256 * 1024
#: Address space that QEMU reserves beside the guest's memory: usually 1.7 GiB, more with many processors.
_RESERVED_BYTES = 4 << 30

# "read < /proc/self/stat" is executed by the shell that the file describes; $$ would be the first shell.
# The shell's standard streams are the names of QEMU's sockets, kept open by the shell: see sockets.py. The
# names can neither be read nor written.
_WAITER = """
umask 077; ulimit -c 0; ulimit -n 1024
dir=$1 part=$2 space=$3; shift 3
identify() {
  read -r me _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ start _ < /proc/self/stat
}
identify; waiter="$me $start"
read -r boot < /proc/sys/kernel/random/boot_id
{
  (
    identify
    echo "$boot $waiter $me $start" > "$dir/process" || exit 125
    while [ "$1" != -- ]; do echo 0 > "$1/cgroup.procs" || exit 125; shift; done
    shift
    ulimit -v "$space"
    exec "$@" < /dev/null
  )
  echo $? > "$dir/exit.new"
  grep -qs 'oom_kill [1-9]' -- "$1/memory.events" "$1/memory.oom_control" "$2/memory.oom_control" &&
    echo "bough: the host's kernel ended it: it took more memory than limits.memory"
} 2>&1 | {
  # Not "until": where the machine is deleted before it began, there is nowhere to write to, and no end.
  while head -c "$part" > "$dir/qemu.log" && [ "$(wc -c < "$dir/qemu.log")" -ge "$part" ]; do
    mv -f "$dir/qemu.log" "$dir/qemu.log.old"
  done
}
while [ "$1" != -- ]; do
  # What is left in it is the uplink, which waits for our copies of its socket to be closed. On a host where a
  # hundred machines end at once, what was killed takes a while to be gone.
  for pause in 0.01 0.02 0.02 0.05 0.05 0.1 0.1 0.2 0.5 1 1 1; do
    while read -r left; do kill -9 "$left"; done < "$1/cgroup.procs"
    rmdir "$1" && break; sleep "$pause"
  done
  shift
done
mv -f "$dir/exit.new" "$dir/exit"
"""


@dataclass(frozen=True)
class ExitCause:
    """The end of a QEMU.

    Attributes:
        exit_status: None after a signal, or if the end was not seen.
        signal: name like "SIGKILL".
        stderr: the end of QEMU's output: untrusted.
        text: the above in words, for "machine 'web' stopped: ...".
    """

    exit_status: int | None
    signal: str | None
    stderr: str
    text: str


class Loader(Protocol):
    """A program that becomes a captured QEMU process (forks/process_image/), in place of a new QEMU."""

    def prepare(
        self, plan: Plan, given: Mapping[str, int], stack: contextlib.ExitStack
    ) -> tuple[list[str], list[int]]:
        """Return the command line, and the descriptors to pass besides `given`; `stack` closes them here.

        Raises:
            MachineFailed: the captured process no longer suits the plan or the host.
        """
        ...


class QemuProcess:
    """A running QEMU, started by this service or an earlier one."""

    def __init__(self, pid: Pid, waiter: Pid, paths: MachinePaths, jail: JailReport | None = None) -> None:
        self._pid = pid
        self._waiter = waiter
        self._paths = paths
        #: The parts of the jail; None for a QEMU of an earlier service.
        self.jail = jail
        #: The process has loaded the device state already: made by a loader.
        self.has_state = False
        self._started: _Started | None = None

    @property
    def given(self) -> Mapping[str, int]:
        """Name -> number, in QEMU, of the descriptors passed by this service."""
        return self._started.given if self._started is not None else {}

    @property
    def pid(self) -> int:
        """QEMU's process id on the host."""
        return self._pid.number

    def is_alive(self) -> bool:
        return self._pid.is_alive()

    def stand_back(self, back: bool = True) -> None:
        """Give QEMU only left-over processor time, or the normal share again."""
        if not stand_back(self.pid, back):
            self._pid.stand_back(back)

    def kill(self) -> None:
        """Send SIGKILL; `wait` then reports the end."""
        self._pid.kill()

    def terminate(self) -> None:
        """Send SIGTERM: QEMU writes its cached disk data and ends."""
        self._pid.terminate()

    def name_sockets(self) -> None:
        """Restore the names of QEMU's sockets that were removed. Raises HostLacks, OSError."""
        name_again(self._paths, self._waiter)

    async def wait(self) -> ExitCause:
        """Wait until QEMU has ended and its end is written. Safe to cancel and to repeat."""
        await self._pid.wait()
        if not await _ends_within(self._waiter, KILL_TIMEOUT_S):
            # A kill hit bubblewrap before the start of QEMU: the child of bubblewrap lives on.
            for orphan in _orphans(self._paths, self._waiter):
                orphan.innermost().kill()
                orphan.kill()
            await _ends_within(self._waiter, KILL_TIMEOUT_S)
        await self._reap()
        return read_exit(self._paths) or _unseen_end(self._paths)

    async def _reap(self) -> None:
        """Reap the waiter, which has ended or is about to. The uplink is about to end."""
        if self._started is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                await asyncio.to_thread(self._started.shell.wait, KILL_TIMEOUT_S)
            await self._started.end_uplink(KILL_TIMEOUT_S)


@dataclass(frozen=True)
class _Started:
    """The processes started for a machine.

    Attributes:
        shell: the waiter.
        uplink: the frame filter, if any.
        sink: the substitute of the frame filter in a pre-warm.
        tpm: swtpm, if any.
    """

    waiter: Pid
    shell: subprocess.Popen[bytes]
    uplink: Pid | None
    sink: asyncio.Task[None] | None
    tpm: subprocess.Popen[bytes] | None
    given: Mapping[str, int]

    async def end_uplink(self, grace_s: float) -> None:
        """Wait for the end of the uplink, after the close of the socket's last descriptor."""
        if self.sink is not None:
            self.sink.cancel()
        if self.uplink is not None:
            await _end_in(self.uplink, grace_s)
        if self.tpm is not None:
            await asyncio.to_thread(_end_tpm, self.tpm, grace_s)


def _end_tpm(tpm: subprocess.Popen[bytes], grace_s: float) -> None:
    """Reap swtpm, which ends by itself when QEMU has ended. Blocks."""
    try:
        tpm.wait(grace_s)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(tpm.pid, signal.SIGKILL)  # bubblewrap does not kill its child
        tpm.wait(grace_s)


async def start_process(
    plan: Plan,
    paths: MachinePaths,
    *,
    memory: int | None = None,
    loader: Loader | None = None,
    back: bool = False,
) -> QemuProcess:
    """Start QEMU and wait until its QMP socket answers. The vCPUs run then; with a template QEMU waits for a
    device state.

    Args:
        memory: descriptor of the memory file for a plan `from_template`.
        loader: makes a captured process, over that memory, in place of a new QEMU.
        back: start with low priority, if the machine has a group for that.

    A cancelled call or an error leaves no process and no socket behind, only log/.

    Raises:
        MachineFailed: QEMU ended or did not answer; carries exit_status or signal, and qemu_stderr.
        WrongState: a process of this machine runs.
        HostLacks: a program is missing, or the runtime directory has another owner.
    """
    paths.log.mkdir(mode=0o700, exist_ok=True)
    with _locked(paths) as lock:
        _clear(paths)
        if plan.uid is not None:
            _give_disks(paths, plan.uid)
        make_ports(plan.nics, plan.uid)
        if loader is not None:
            clear_ports(plan.nics)
        with contextlib.ExitStack() as sockets:
            started = await _spawn(plan, paths, lock, memory, loader, back, sockets)
    try:
        await _wait_greeting(plan, paths, started.waiter)
        open_ports(plan.nics, plan.uid)
        found = _read_process_file(paths)
        if found is None:
            raise await _ended_early(plan, paths, started.waiter)
    except BaseException:
        await finish(_end_all(plan, paths, started))
        raise
    process = QemuProcess(found.monitor.innermost(), started.waiter, paths, _report(plan))
    process._started = started
    process.has_state = loader is not None
    return process


async def find_process(paths: MachinePaths) -> QemuProcess | None:
    """Return the machine's process from an earlier service; None: no process of the machine lives.

    Wait for QEMU if the earlier service was killed in the middle of a start. Only a kill of QEMU itself ends
    all processes of the machine: bubblewrap does not kill its child.
    """
    deadline = time.monotonic() + _VISIBLE_S
    while _is_locked(paths):
        found = _read_process_file(paths)
        outermost = None
        if found is not None and found.monitor.is_alive():
            outermost = found.monitor
        elif found is not None and (orphans := _orphans(paths, found.waiter)):
            outermost = orphans[0]
        if found is not None and outermost is not None:
            inside = outermost.innermost()
            if not _is_wrapper(inside) or time.monotonic() > deadline:
                return QemuProcess(inside, found.waiter, paths)
        # Just started and not visible yet, or just ended and not written down yet.
        await asyncio.sleep(0.01)
        if time.monotonic() > deadline:
            raise WrongState(f"something holds {paths.log / 'lock'} and is not QEMU", hint="see lsof")
    return None


def is_held(paths: MachinePaths) -> bool:
    """Return whether any process of this machine lives; its log/ must exist."""
    return _is_locked(paths)


def read_exit(paths: MachinePaths) -> ExitCause | None:
    """Return how the machine's last process ended; None if the process lives, or the end was not recorded."""
    try:
        status = int(paths.exit_status.read_text())
    except (FileNotFoundError, ValueError):
        return None
    stderr = _read_stderr(paths)
    last = stderr.strip().rpartition("\n")[2][:300]
    # The convention of shells and of bubblewrap for a signal.
    if status > 128 and status - 128 in signal.valid_signals():
        name = signal.Signals(status - 128).name
        ours = f": {last.removeprefix('bough: ')}" if last.startswith("bough: ") else ""
        return ExitCause(None, name, stderr, f"QEMU was killed by {name}{ours}")
    because = f": {last}" if status and last else ""
    return ExitCause(status, None, stderr, f"QEMU exited with {status}{because}")


def _unseen_end(paths: MachinePaths) -> ExitCause:
    return ExitCause(None, None, _read_stderr(paths), "QEMU has ended, and its exit status is unknown")


def _read_stderr(paths: MachinePaths) -> str:
    text = read_tail(paths.qemu_log, STDERR_BYTES)
    if len(text) < STDERR_BYTES // 2:
        text = read_tail(Path(f"{paths.qemu_log}.old"), STDERR_BYTES // 2) + text
    return text


# -- starting ---------------------------------------------------------------------------------


async def _spawn(
    plan: Plan,
    paths: MachinePaths,
    lock: int,
    memory: int | None,
    loader: Loader | None,
    back: bool,
    sockets: contextlib.ExitStack,
) -> _Started:
    """Start the processes. `sockets` are closed here after they are passed on. A failure leaves nothing
    behind.
    """
    names = socket_paths(paths)
    descriptors = {name: sockets.enter_context(listen(path)).fileno() for name, path in names.items()}
    groups = create_groups(plan.jail.groups, plan.machine_id, plan.limits)
    uplink = sink = tpm = None
    try:
        if plan.tpm_state is not None:
            end, tpm = start_tpm(plan.tpm_state, plan.jail, uid=plan.uid, groups=groups)
            descriptors["tpm"] = sockets.enter_context(end).fileno()
        if back:
            for group in groups:
                share_last(Path(group), back)
        if plan.has_passt and plan.prewarm:
            end, far = socket.socketpair()
            descriptors["uplink"] = sockets.enter_context(end).fileno()
            sink = asyncio.create_task(_swallow(far), name="swallow the frames of a pre-warm")
        elif plan.has_passt:
            asked = begin_uplink(machine_id=plan.machine_id, uid=plan.uid, groups=groups)
            descriptors["uplink"] = sockets.enter_context(asked.end).fileno()
            uplink = Pid.of(asked.started())
        shell = _start_shell(plan, paths, groups, descriptors, lock, memory, loader, sockets)
        waiter = Pid.of(shell.pid)
        if waiter is None:
            raise MachineFailed("the shell that starts QEMU ended at once", exit_status=shell.wait())
    except BaseException:
        if sink is not None:
            sink.cancel()
        if uplink is not None:
            await finish(_end_in(uplink, 0))
        if tpm is not None:
            sockets.close()
            await finish(asyncio.to_thread(_end_tpm, tpm, KILL_TIMEOUT_S))
        remove_groups(plan.jail.groups, plan.machine_id)
        raise
    return _Started(waiter, shell, uplink, sink, tpm, descriptors)


def _start_shell(
    plan: Plan,
    paths: MachinePaths,
    groups: list[str],
    descriptors: dict[str, int],
    lock: int,
    memory: int | None,
    loader: Loader | None,
    sockets: contextlib.ExitStack,
) -> subprocess.Popen[bytes]:
    """Start the waiter. `descriptors` then holds all descriptors for QEMU."""
    if memory is not None:
        descriptors[MEMORY] = memory
    # A high number, so that the kernel makes QEMU's table of open files large at once: the kernel waits some
    # 20 ms before enlarging the table of a process with threads (fs/file.c, expand_fdtable).
    lock = fcntl.fcntl(lock, fcntl.F_DUPFD_CLOEXEC, _HIGH_DESCRIPTOR)
    sockets.callback(os.close, lock)
    descriptors["lock"] = lock
    outer = open_filter() if plan.jail.bwrap and plan.jail.system_calls else None
    if outer is not None:
        sockets.callback(os.close, outer)
    passed = [*descriptors.values(), *(() if outer is None else (outer,))]
    if loader is None:
        argv = render_argv(plan, descriptors)
    else:
        argv, more = loader.prepare(plan, descriptors, sockets)
        passed += more
    command = render_jail(
        plan.jail,
        _sight(plan, paths),
        argv,
        uid=plan.uid,
        filter_descriptor=outer,
    )
    shell = shutil.which("sh")
    if shell is None:
        raise HostLacks("no shell (sh) on PATH")
    names = socket_paths(paths)
    console, qmp, agent = (hold(names[name], sockets) for name in ("console", "qmp", "agent"))
    return subprocess.Popen(
        [
            shell,
            "-c",
            _WAITER,
            f"bough-{plan.name}",
            str(paths.log),
            str(_LOG_PART_BYTES),
            _address_space(plan, groups),
            *groups,
            "--",
            *command,
        ],
        stdin=console,
        stdout=qmp,
        stderr=agent,
        cwd="/",
        pass_fds=passed,
        start_new_session=True,
        env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"},
    )


async def _swallow(connection: socket.socket) -> None:
    """Read and drop data."""
    with connection:
        connection.setblocking(False)
        with contextlib.suppress(OSError):
            while await asyncio.get_running_loop().sock_recv(connection, _SWALLOWED_BYTES):
                pass


def _address_space(plan: Plan, groups: list[str]) -> str:
    """Return a bound in KiB for `ulimit -v`, for hosts without a memory cgroup.

    The bound is coarse: QEMU never uses much of the reserved memory (stacks, heaps, translated code).
    RLIMIT_DATA does not work: the kernel does not count memory reserved first and made writable by another
    mmap. QEMU allocates guest memory in this way.
    """
    limit = plan.limits.process_memory_bytes
    if limit is None or limits_memory(groups):
        return "unlimited"
    return str((limit + _RESERVED_BYTES) // 1024)


def _sight(plan: Plan, paths: MachinePaths) -> Sight:
    """Return the host files needed by the machine's process."""
    read_only = [layer.path for disk in plan.disks for layer in disk.backing]
    writable = [str(paths.disks)] if paths.disks.is_dir() else []
    read_only += [medium.path for medium in plan.media]
    for disk in plan.disks:
        if not Path(disk.path).is_relative_to(paths.disks):
            (read_only if disk.read_only else writable).append(disk.path)
    firmware, boot = plan.firmware, plan.direct_boot
    read_only += [firmware.code] if firmware.code else []
    read_only += [path for path in (boot.kernel, boot.initrd) if path] if boot else []
    return Sight(
        program=plan.qemu,
        writable=tuple(writable),
        read_only=tuple(read_only),
        devices=("/dev/kvm",) if plan.accelerator == "kvm" else (),
        network=plan.needs_host_network,
        placed=seen_ports(plan.nics),
    )


def _report(plan: Plan) -> JailReport:
    return report_jail(plan.jail, uid=plan.uid, network=plan.needs_host_network)


def _clear(paths: MachinePaths) -> None:
    """Remove the files of the last process, which has ended."""
    clear(paths)
    logs = (paths.qemu_log, Path(f"{paths.qemu_log}.old"), paths.exit_status, paths.log / "process")
    for path in logs:
        path.unlink(missing_ok=True)


def _give_disks(paths: MachinePaths, uid: int) -> None:
    """Give the disks to QEMU's user. The directory stays root's, so that QEMU can create no files there."""
    for path in paths.disks.iterdir():
        if path.is_file() and not path.is_symlink():
            os.chown(path, uid, uid, follow_symlinks=False)


async def _wait_greeting(plan: Plan, paths: MachinePaths, waiter: Pid) -> None:
    greeting = asyncio.create_task(Qmp.connect(paths.qmp_socket, timeout_s=GREETING_MOST_S))
    ended = asyncio.create_task(waiter.wait())
    watch = ProgressWatch(GREETING_TIMEOUT_S, most_s=GREETING_MOST_S, work=Wrapped(waiter.number))
    try:
        with contextlib.suppress(Stalled):
            await watch.run(asyncio.wait({greeting, ended}, return_when=asyncio.FIRST_COMPLETED))
        if not greeting.done():
            # QEMU may have greeted and ended at once: gone in both cases.
            raise await _ended_early(plan, paths, waiter)
        try:
            qmp = await greeting
            await _limit_disks(plan, qmp)
            await qmp.close()
        except QmpLost as error:
            raise await _ended_early(plan, paths, waiter) from error
    finally:
        ended.cancel()
        greeting.cancel()
        with contextlib.suppress(asyncio.CancelledError, BoughError):
            await greeting


async def _limit_disks(plan: Plan, qmp: Qmp) -> None:
    """Limit all disks as one group. Over QMP: such a limit stays with the device when the overlay changes."""
    limits = plan.limits
    if limits.disk_bytes_per_s is None and limits.disk_operations_per_s is None:
        return
    nothing = dict.fromkeys(("bps_rd", "bps_wr", "iops_rd", "iops_wr"), 0)
    for disk in plan.disks:
        await qmp.execute(
            "block_set_io_throttle",
            id=device_path(disk.id, disk.bus),
            group="machine",
            bps=limits.disk_bytes_per_s or 0,
            iops=limits.disk_operations_per_s or 0,
            **nothing,
        )


async def _ended_early(plan: Plan, paths: MachinePaths, waiter: Pid) -> MachineFailed:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(1):
            await waiter.wait()
    cause = read_exit(paths)
    if cause is None:
        why = f"QEMU did not answer within {GREETING_TIMEOUT_S:g} s"
        return MachineFailed(why, machine=plan.name, qemu_stderr=_read_stderr(paths))
    return MachineFailed(
        cause.text,
        machine=plan.name,
        exit_status=cause.exit_status,
        signal=cause.signal,
        qemu_stderr=cause.stderr,
    )


async def _end_all(plan: Plan, paths: MachinePaths, started: _Started) -> None:
    """Kill everything below the waiter, wait for the end of the waiter, and remove the sockets; bounded in
    time.
    """
    waiter, deadline = started.waiter, time.monotonic() + KILL_TIMEOUT_S
    while (waiter.is_alive() or _is_locked(paths)) and time.monotonic() < deadline:
        found = _read_process_file(paths)
        if found is not None and found.monitor.is_alive():
            # bubblewrap does not kill its child: the innermost process first.
            found.monitor.innermost().kill()
        elif found is not None:
            # A child in creation has lost its parent by then.
            for orphan in _orphans(paths, waiter):
                orphan.kill()
        await asyncio.sleep(0.005)
    if started.shell.poll() is None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            await asyncio.to_thread(started.shell.wait, 1)
    if started.shell.poll() is None:
        started.shell.kill()
        started.shell.wait()
    await started.end_uplink(1)
    remove_groups(plan.jail.groups, plan.machine_id)
    remove(paths)


async def _end_in(pid: Pid, grace_s: float) -> None:
    if not await _ends_within(pid, grace_s):
        pid.kill()
        await pid.wait()


async def _ends_within(pid: Pid, timeout_s: float) -> bool:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await pid.wait()
            return True
    return False


# -- finding again ----------------------------------------------------------------------------


@dataclass(frozen=True)
class _ProcessFile:
    waiter: Pid
    monitor: Pid


def _read_process_file(paths: MachinePaths) -> _ProcessFile | None:
    """Return the waiter's file; None if the file is missing or from an earlier boot of the host."""
    try:
        boot, *numbers = (paths.log / "process").read_text().split()
        waiter, waiter_start, monitor, monitor_start = map(int, numbers)
    except (FileNotFoundError, ValueError):
        return None
    if boot != read_boot_id():
        return None
    return _ProcessFile(Pid(waiter, waiter_start), Pid(monitor, monitor_start))


@contextlib.contextmanager
def _locked(paths: MachinePaths) -> Iterator[int]:
    """Open the lock with a descriptor of our own; inherited descriptors would keep it locked."""
    descriptor = os.open(paths.log / "lock", os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise WrongState("a QEMU of this machine runs already", hint="stop it first") from None
        yield descriptor
    finally:
        os.close(descriptor)


def _orphans(paths: MachinePaths, waiter: Pid) -> list[Pid]:
    """Return the processes in a jail after a kill of the jail's outermost process.

    Such a process holds the lock file open. So do the waiter's shells, but these stay in the waiter's
    session.
    """
    lock = str(paths.log / "lock")
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            number = int(process.name)
            is_jailed = os.getsid(number) != waiter.number or _read_name(process) == "bwrap"
            if is_jailed and any(str(link.readlink()) == lock for link in (process / "fd").iterdir()):
                pid = Pid.of(number)
                found += [pid] if pid is not None and number != os.getpid() else []
    return found


def _is_wrapper(pid: Pid) -> bool:
    """Return whether the process is about to start QEMU."""
    with contextlib.suppress(OSError):
        return _read_name(Path(f"/proc/{pid.number}")) in ("sh", "bwrap")
    return False


def _read_name(process: Path) -> str:
    return (process / "comm").read_text(errors="replace").strip()


def _is_locked(paths: MachinePaths) -> bool:
    try:
        with _locked(paths):
            return False
    except WrongState:
        return True
    except FileNotFoundError:
        return False
