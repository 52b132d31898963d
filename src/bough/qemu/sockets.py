"""The sockets of a QEMU: the monitor, and the ports of the agent and the console.

bough binds the sockets and passes them to QEMU as descriptors. A client can connect before QEMU runs, and
QEMU needs no right to create sockets. A socket still listens after the removal of its name. Therefore the
waiter (waiter.sh) keeps a descriptor of each name's file, and a later service restores the names of a
running machine from these descriptors.
"""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path

from bough.errors import HostLacks
from bough.home import SocketAddress
from bough.paths import MachinePaths, make_private_directory
from bough.qemu.pid import Pid

_REMOVED = " (deleted)"


def socket_paths(paths: MachinePaths) -> dict[str, Path]:
    """Return the socket paths by their names in a plan."""
    return {"qmp": paths.qmp_socket, "agent": paths.agent_socket, "console": paths.console_socket}


def listen(path: Path, *, backlog: int = 1) -> socket.socket:
    """Return a listening socket, open to this user only.

    Raises:
        HostLacks: `path` cannot be bound.
    """
    listener = socket.socket(socket.AF_UNIX)
    try:
        # The directory is 0700: no other user can act between the two calls.
        with SocketAddress(path) as address:
            listener.bind(address)
        path.chmod(0o600)
        listener.listen(backlog)
    except OSError as error:
        listener.close()
        raise HostLacks(
            f"cannot listen at {path}: {error.strerror or error}",
            hint="BOUGH_HOME has to be on a local file system that can hold sockets",
        ) from error
    return listener


def hold(path: Path, until: contextlib.ExitStack) -> int:
    """Return a descriptor of a socket's name; `until` closes the descriptor.

    A connection to /proc/PID/fd/N of the descriptor reaches the socket, also after the name is removed.
    """
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    until.callback(os.close, descriptor)
    return descriptor


def clear(paths: MachinePaths) -> None:
    """Make an empty directory for the sockets of a machine that does not run."""
    if paths.runtime.is_symlink():  # links of an earlier version
        paths.runtime.unlink()
    make_private_directory(paths.runtime)
    remove(paths)


def remove(paths: MachinePaths) -> None:
    """Remove the names."""
    for path in socket_paths(paths).values():
        path.unlink(missing_ok=True)


def name_again(paths: MachinePaths, waiter: Pid) -> None:
    """Restore removed socket names, as links to the waiter's descriptors.

    A socket without a holder in the waiter's session stays without a name: connections fail.

    Raises:
        HostLacks: the directory cannot be made. OSError: a link cannot be made.
    """
    missing = {path.name: path for path in socket_paths(paths).values() if not path.exists()}
    if not missing:
        return
    if not paths.runtime.is_dir():
        paths.runtime.unlink(missing_ok=True)  # a dangling link of an earlier version
        make_private_directory(paths.runtime)
    for name, held in _held_names(waiter).items():
        if name in missing:
            missing[name].unlink(missing_ok=True)
            missing[name].symlink_to(held)


def _held_names(waiter: Pid) -> dict[str, Path]:
    """Return name -> a descriptor: the waiter's, or, after a kill of the waiter, of another shell in its
    session.
    """
    found: dict[str, Path] = {}
    for process in (Path(f"/proc/{waiter.number}"), *Path("/proc").glob("[0-9]*")):
        with contextlib.suppress(OSError):  # the process has ended, or belongs to another user
            if os.getsid(int(process.name)) != waiter.number:
                continue
            for descriptor in (process / "fd").iterdir():
                name = Path(str(descriptor.readlink()).removesuffix(_REMOVED)).name
                if descriptor.is_socket():
                    found.setdefault(name, descriptor)
    return found
