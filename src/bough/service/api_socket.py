"""Bind the API's socket in BOUGH_HOME. Bind the socket again when the file is removed."""

from __future__ import annotations

import contextlib
import logging
import signal
import socket
from pathlib import Path

from bough.errors import BoughError
from bough.paths import Home, make_private_directory
from bough.qemu.sockets import listen

log = logging.getLogger("bough.service")

_BACKLOG = 512


class ApiSocket:
    """The API's socket. The service holds the lock of the home, so no other service uses this path."""

    def __init__(self, home: Home) -> None:
        self._path = home.api_socket
        self._home = home
        self._bound: tuple[int, int] | None = None
        self._trouble = ""

    def bind(self) -> socket.socket:
        """Return a listening socket with this name.

        Raises:
            HostLacks: the path cannot be bound, or the directory is open to others.
        """
        make_private_directory(self._path.parent)
        self._path.unlink(missing_ok=True)  # left by a killed service
        listener = listen(self._path, backlog=_BACKLOG)
        listener.setblocking(False)
        self._bound = _identity(self._path)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        return listener

    def bind_again(self) -> socket.socket | None:
        """Return a new listening socket if clients cannot find the present one any more."""
        if _identity(self._path) == self._bound or not self._home.lock.exists():
            return None  # without a lock file, all of BOUGH_HOME was removed
        try:
            listener = self.bind()
        except (BoughError, OSError) as error:
            if str(error) != self._trouble:
                log.error("the API's socket was removed and cannot be made again: %s", error)
            self._trouble = str(error)
            return None
        log.warning("the API's socket was removed: it is bound again at %s", self._path)
        self._trouble = ""
        return listener

    def remove(self) -> None:
        """Remove the socket's file. No client finds the service any more."""
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)


def replace_runtime_link(home: Home) -> None:
    """Turn BOUGH_HOME/run into a directory.

    In earlier versions the path is a link to a directory in $XDG_RUNTIME_DIR, with the sockets of running
    machines. The new directory holds a link for each of these machines.
    """
    fresh = home.runtime.with_suffix(".new")
    if home.runtime.is_symlink():
        make_private_directory(fresh)
        for directory in home.runtime.iterdir() if home.runtime.is_dir() else ():
            link = fresh / directory.name
            if directory.is_dir() and not link.is_symlink():
                link.symlink_to(home.runtime.readlink() / directory.name)
        home.runtime.unlink()
    if fresh.exists() and not home.runtime.exists():  # also after a kill between these two steps
        fresh.rename(home.runtime)


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        info = path.stat()
    except OSError:
        return None
    return info.st_dev, info.st_ino
