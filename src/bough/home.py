"""Find BOUGH_HOME and the socket of the service.

Every command imports this module first, so the module must load fast.
"""

from __future__ import annotations

import os

#: Directory of the sockets in a BOUGH_HOME.
RUNTIME = "run"
API_SOCKET = "api.sock"
#: Exit status of a service that finds another service running (sysexits.h, EX_TEMPFAIL).
ANOTHER_SERVES = 75
_MOST_ADDRESS_BYTES = 107


def find_home() -> str:
    """Return $BOUGH_HOME, or the user's default."""
    given = os.environ.get("BOUGH_HOME")
    if given:
        return given
    data = os.environ.get("XDG_DATA_HOME")
    if data is None and os.geteuid() == 0:
        return "/var/lib/bough"
    return os.path.join(data or os.path.expanduser("~/.local/share"), "bough")  # noqa: PTH111, PTH118


class SocketAddress:
    """A context in which bind() and connect() accept a `path` of any length.

    The kernel bounds an address to 107 bytes (unix(7), sun_path). A longer path is reached through a
    descriptor of the directory. The context holds the descriptor open.

    Args:
        inherit: the address is for a program that replaces this process (exec).

    Raises:
        OSError: the directory of a longer path cannot be opened.
    """

    def __init__(self, path: str | os.PathLike[str], *, inherit: bool = False) -> None:
        self._path = os.fspath(path)
        self._inherit = inherit
        self._directory: int | None = None

    def __enter__(self) -> str:
        if len(os.fsencode(self._path)) <= _MOST_ADDRESS_BYTES:
            return self._path
        directory, name = os.path.split(self._path)
        self._directory = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        os.set_inheritable(self._directory, self._inherit)
        return f"/proc/self/fd/{self._directory}/{name}"

    def __exit__(self, *_: object) -> None:
        if self._directory is not None:
            os.close(self._directory)
            self._directory = None
