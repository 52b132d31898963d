"""The files of the waiter, below a machine's log/, and the processes that they name.

process     the host's boot id; pid and start time of the waiter and of the jail's outermost process
lock        locked (flock) while any process of the session lives; a free lock means that none lives
qemu.log    QEMU's last output, 128 KiB at most. qemu.log.old has the 128 KiB before that
exit        QEMU's exit status, after its end
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bough.errors import WrongState
from bough.paths import MachinePaths
from bough.qemu.pid import Pid, read_boot_id
from bough.storage import read_tail

STDERR_BYTES = 64 * 1024
LOG_PART_BYTES = 128 * 1024


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


def is_held(paths: MachinePaths) -> bool:
    """Return whether any process of this machine lives; its log/ must exist."""
    try:
        with locked(paths):
            return False
    except WrongState:
        return True
    except FileNotFoundError:
        return False


def read_exit(paths: MachinePaths) -> ExitCause | None:
    """Return how the machine's last process ended; None if the process lives, or the end was not recorded."""
    try:
        status = int(paths.exit_status.read_text())
    except (FileNotFoundError, ValueError):
        return None
    stderr = read_stderr(paths)
    last = stderr.strip().rpartition("\n")[2][:300]
    # The convention of shells and of bubblewrap for a signal.
    if status > 128 and status - 128 in signal.valid_signals():
        name = signal.Signals(status - 128).name
        ours = f": {last.removeprefix('bough: ')}" if last.startswith("bough: ") else ""
        return ExitCause(None, name, stderr, f"QEMU was killed by {name}{ours}")
    because = f": {last}" if status and last else ""
    return ExitCause(status, None, stderr, f"QEMU exited with {status}{because}")


def unseen_end(paths: MachinePaths) -> ExitCause:
    return ExitCause(None, None, read_stderr(paths), "QEMU has ended, and its exit status is unknown")


def read_stderr(paths: MachinePaths) -> str:
    text = read_tail(paths.qemu_log, STDERR_BYTES)
    if len(text) < STDERR_BYTES // 2:
        text = read_tail(Path(f"{paths.qemu_log}.old"), STDERR_BYTES // 2) + text
    return text


def clear_files(paths: MachinePaths) -> None:
    """Remove the files of the last process, which has ended."""
    logs = (paths.qemu_log, Path(f"{paths.qemu_log}.old"), paths.exit_status, paths.log / "process")
    for path in logs:
        path.unlink(missing_ok=True)


@dataclass(frozen=True)
class ProcessFile:
    """The processes of a machine.

    Attributes:
        waiter: the shell that waits for QEMU.
        monitor: the outermost process of the jail.
    """

    waiter: Pid
    monitor: Pid


def read_process_file(paths: MachinePaths) -> ProcessFile | None:
    """Return the waiter's file; None if the file is missing or from an earlier boot of the host."""
    try:
        boot, *numbers = (paths.log / "process").read_text().split()
        waiter, waiter_start, monitor, monitor_start = map(int, numbers)
    except (FileNotFoundError, ValueError):
        return None
    if boot != read_boot_id():
        return None
    return ProcessFile(Pid(waiter, waiter_start), Pid(monitor, monitor_start))


@contextlib.contextmanager
def locked(paths: MachinePaths) -> Iterator[int]:
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


def orphans_of(paths: MachinePaths, waiter: Pid) -> list[Pid]:
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


def is_wrapper(pid: Pid) -> bool:
    """Return whether the process is about to start QEMU."""
    with contextlib.suppress(OSError):
        return _read_name(Path(f"/proc/{pid.number}")) in ("sh", "bwrap")
    return False


def _read_name(process: Path) -> str:
    return (process / "comm").read_text(errors="replace").strip()
