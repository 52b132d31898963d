"""File server: OpenSSH's sftp-server over two pipes, in a jail that shows a single directory.

The guest's messages are hostile and may take over the server. So the jail contains only that directory, as
/share, and system directories, read-only. The jail has no /proc, no network, no other process and no
capability. Links in the directory can only lead to files in the jail. A read-only share is mounted read-only.

The server runs as the service's user. Under a root service the server runs as the directory's owner, without
any capability.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bough.errors import Conflict, HostLacks
from bough.mounts.modes import render_mode_filter
from bough.mounts.source import hidden_below, open_source
from bough.qemu.jail import SYSTEM_FILES, TO_DROP_ALL, render_setpriv, render_system
from bough.qemu.packages import find_sftp_server, render_fix
from bough.qemu.subprocesses import end_subprocess
from bough.spec import MountSpec

SHARE = "/share"
_MEMORY_KIB = 1024 * 1024
_CHANGED = 41
#: The jail is entered by path, and the path may lead to another directory meanwhile. So the directory is
#: checked again inside the jail, where it cannot change any more.
_CHECKED = (
    f'ulimit -c 0; ulimit -v {_MEMORY_KIB}; [ "$(stat -c %d:%i {SHARE})" = "$1" ] || exit {_CHANGED};'
    ' shift; exec "$@"'
)
#: Enter the machine's control groups before anything else runs.
_GROUPED = 'while [ "$1" != -- ]; do echo 0 > "$1/cgroup.procs" 2>/dev/null; shift; done; shift; exec "$@"'
_END_S = 5.0
_STREAM_BYTES = 512 * 1024


@dataclass(frozen=True)
class Programs:
    """Paths of the programs for a file server."""

    server: str
    bwrap: str
    setpriv: str | None


def find_programs() -> Programs:
    """Find the programs on this host. Raises HostLacks."""
    server = find_sftp_server()
    if server is None:
        raise HostLacks(
            "directories cannot be shared: OpenSSH's sftp-server is not installed",
            hint=render_fix("sftp-server"),
        )
    bwrap, setpriv = shutil.which("bwrap"), shutil.which("setpriv")
    if bwrap is None:
        raise HostLacks(
            "directories cannot be shared: bubblewrap is not installed", hint=render_fix("bubblewrap")
        )
    if os.geteuid() == 0 and setpriv is None:
        raise HostLacks(
            "directories cannot be shared by root: setpriv is not installed", hint=render_fix("setpriv")
        )
    return Programs(server, bwrap, setpriv)


def server_ids(mount: MountSpec) -> tuple[int, int]:
    """Return the user and group of the mount's server.

    Raises:
        OSError: the directory does not exist any more.
    """
    return _ids_for(_look_at(mount))


def _look_at(mount: MountSpec) -> os.stat_result:
    descriptor = open_source(mount.source)
    try:
        return os.fstat(descriptor)
    finally:
        os.close(descriptor)


def _ids_for(info: os.stat_result) -> tuple[int, int]:
    return (info.st_uid, info.st_gid) if os.geteuid() == 0 else (os.geteuid(), os.getegid())


def render_server(
    programs: Programs,
    mount: MountSpec,
    *,
    ids: tuple[int, int],
    identity: str,
    hidden: Sequence[str] = (),
    passwd: int,
    seccomp: int | None,
) -> list[str]:
    """Return the command line. Pure, except for a look at /bin and /lib.

    Args:
        identity: device and inode of the directory, checked again inside the jail.
        hidden: paths below the directory that the guest sees as empty.
        passwd, seccomp: descriptors that bubblewrap reads: the server's entry in /etc/passwd, and a filter.
    """
    as_root = programs.setpriv is not None and os.geteuid() == 0
    kept = TO_DROP_ALL if as_root else ()
    words = [
        programs.bwrap,
        *([] if as_root else ["--unshare-user"]),
        *("--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"),
        *("--die-with-parent", "--new-session", "--clearenv", "--setenv", "PATH", "/usr/bin:/bin"),
        *("--cap-drop", "ALL", *(word for name in kept for word in ("--cap-add", name))),
        *render_system(),
        *(word for path in ("/etc", "/dev", SHARE) for word in ("--perms", "0755", "--dir", path)),
        *(word for path in SYSTEM_FILES for word in ("--ro-bind-try", path, path)),
        *("--perms", "0444", "--file", str(passwd), "/etc/passwd"),
        *("--dev-bind", "/dev/null", "/dev/null"),
        *("--bind" if mount.writable else "--ro-bind", mount.source, SHARE),
        *(
            word
            for place in hidden
            for word in ("--tmpfs", f"{SHARE}/{place}", "--remount-ro", f"{SHARE}/{place}")
        ),
        *("--remount-ro", "/", "--chdir", SHARE),
        *(("--seccomp", str(seccomp)) if seccomp is not None else ()),
        "--",
    ]
    if as_root and programs.setpriv is not None:
        words += render_setpriv(programs.setpriv, ids[0], gid=ids[1])
    words += ["/bin/sh", "-c", _CHECKED, "sh", identity, programs.server, "-d", SHARE, "-u", "0000"]
    return words if mount.writable else [*words, "-R"]


async def start_server(
    mount: MountSpec, *, hidden: Sequence[Path], groups: Sequence[str]
) -> asyncio.subprocess.Process:
    """Start a server. Its standard input and output speak SFTP.

    End the server with `end_server`. The server also ends with the service.

    Args:
        hidden: directories of bough itself.
        groups: control groups of the machine, which count the server's processor time.

    Raises:
        Conflict: the directory does not exist any more, or is a link now.
        HostLacks
    """
    programs = find_programs()
    try:
        info = _look_at(mount)
    except OSError as error:
        raise Conflict(f"the directory {mount.source} is gone ({error.strerror})") from error
    ids = _ids_for(info)
    with _files(ids) as (passwd, seccomp):
        argv = render_server(
            programs,
            mount,
            ids=ids,
            identity=f"{info.st_dev}:{info.st_ino}",
            hidden=hidden_below(mount.source, hidden),
            passwd=passwd,
            seccomp=seccomp,
        )
        try:
            return await asyncio.create_subprocess_exec(
                *("/bin/sh", "-c", _GROUPED, "sh", *groups, "--", *argv),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                limit=_STREAM_BYTES,
                cwd="/",
                env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"},
                pass_fds=[fd for fd in (passwd, seccomp) if fd is not None],
                start_new_session=True,
            )
        except OSError as error:
            raise HostLacks(f"a file server cannot be started: {error}") from error


async def end_server(process: asyncio.subprocess.Process) -> str:
    """End the server. Return its error message if the server ended by itself before, else ""."""
    if process.stdin is not None:
        process.stdin.close()
    with contextlib.suppress(ProcessLookupError, TimeoutError):
        if process.returncode is None:
            async with asyncio.timeout(0.2):  # let it finish a write that has begun
                await process.wait()
    if process.returncode is None:
        await end_subprocess(process)
        return ""
    said = b""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_END_S):
            if process.stderr is not None:
                said = await process.stderr.read(4096)
    await end_subprocess(process)
    if process.returncode == _CHANGED:
        return "the directory was replaced while the file server started"
    if process.returncode in (0, -9, 255):
        return ""
    lines = said.decode(errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else f"the file server ended with status {process.returncode}"


@contextmanager
def _files(ids: tuple[int, int]) -> Iterator[tuple[int, int | None]]:
    """Provide the files that bubblewrap reads: /etc/passwd and a filter.

    sftp-server needs a name for its user, any name.
    """
    program = render_mode_filter()
    contents = [f"share:x:{ids[0]}:{ids[1]}::{SHARE}:/bin/false\n".encode()]
    contents += [program] if program is not None else []
    descriptors: list[int] = []
    try:
        for content in contents:
            descriptor = os.memfd_create("bough-mount", os.MFD_CLOEXEC)
            descriptors.append(descriptor)
            os.write(descriptor, content)
            os.lseek(descriptor, 0, os.SEEK_SET)
        yield descriptors[0], descriptors[1] if program is not None else None
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
