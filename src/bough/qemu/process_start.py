"""Start of a QEMU process in its jail, by way of the waiter (waiter.sh)."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from bough.errors import BoughError, HostLacks, MachineFailed, QmpLost
from bough.networks.uplink import begin_uplink
from bough.paths import MachinePaths
from bough.progress_watch import ProgressWatch, Stalled
from bough.qemu.argv import render_argv
from bough.qemu.cgroup import create_groups, limits_memory, remove_groups, share_last
from bough.qemu.disk_bus import device_path
from bough.qemu.jail import JailReport, Sight, render_jail, report_jail
from bough.qemu.pid import Pid, Wrapped
from bough.qemu.plan import Plan
from bough.qemu.process import KILL_TIMEOUT_S, QemuProcess, StartedProcesses, end_in, end_tpm
from bough.qemu.qmp import Qmp
from bough.qemu.sockets import clear, hold, listen, remove, socket_paths
from bough.qemu.switch_ports import clear_ports, make_ports, open_ports, seen_ports
from bough.qemu.syscalls import open_filter
from bough.qemu.tpm import start_tpm
from bough.qemu.waiter_files import (
    LOG_PART_BYTES,
    clear_files,
    is_held,
    locked,
    orphans_of,
    read_exit,
    read_process_file,
    read_stderr,
)
from bough.tasks import finish

#: QEMU's processor time or idle time until it answers; usually 0.05 s.
GREETING_TIMEOUT_S = 30.0
GREETING_MOST_S = 600.0

#: Name of the memory file among the descriptors that QEMU gets.
MEMORY = "memory"

_WAITER = Path(__file__).with_name("waiter.sh").read_text()
_HIGH_DESCRIPTOR = 255
_SWALLOWED_BYTES = 256 * 1024
#: Address space that QEMU reserves beside the guest's memory: usually 1.7 GiB, more with many processors.
_RESERVED_BYTES = 4 << 30


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
    with locked(paths) as lock:
        clear(paths)
        clear_files(paths)
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
        found = read_process_file(paths)
        if found is None:
            raise await _ended_early(plan, paths, started.waiter)
    except BaseException:
        await finish(_end_all(plan, paths, started))
        raise
    process = QemuProcess(found.monitor.innermost(), started.waiter, paths, _report(plan))
    process._started = started
    process.has_state = loader is not None
    return process


async def _spawn(
    plan: Plan,
    paths: MachinePaths,
    lock: int,
    memory: int | None,
    loader: Loader | None,
    back: bool,
    sockets: contextlib.ExitStack,
) -> StartedProcesses:
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
            await finish(end_in(uplink, 0))
        if tpm is not None:
            sockets.close()
            await finish(asyncio.to_thread(end_tpm, tpm, KILL_TIMEOUT_S))
        remove_groups(plan.jail.groups, plan.machine_id)
        raise
    return StartedProcesses(waiter, shell, uplink, sink, tpm, descriptors)


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
            str(LOG_PART_BYTES),
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
        return MachineFailed(why, machine=plan.name, qemu_stderr=read_stderr(paths))
    return MachineFailed(
        cause.text,
        machine=plan.name,
        exit_status=cause.exit_status,
        signal=cause.signal,
        qemu_stderr=cause.stderr,
    )


async def _end_all(plan: Plan, paths: MachinePaths, started: StartedProcesses) -> None:
    """Kill everything below the waiter, wait for the end of the waiter, and remove the sockets; bounded in
    time.
    """
    waiter, deadline = started.waiter, time.monotonic() + KILL_TIMEOUT_S
    while (waiter.is_alive() or is_held(paths)) and time.monotonic() < deadline:
        found = read_process_file(paths)
        if found is not None and found.monitor.is_alive():
            # bubblewrap does not kill its child: the innermost process first.
            found.monitor.innermost().kill()
        elif found is not None:
            # A child in creation has lost its parent by then.
            for orphan in orphans_of(paths, waiter):
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
