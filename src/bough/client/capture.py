"""Captures of live hosts by way of the user's own ssh: its configuration, keys, agent and known hosts."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bough.errors import DownloadFailed, HostLacks
from bough.spec.ssh_address import parse_address

_END_S = 10.0
#: A connection that is silent for two minutes has ended.
_ALIVE = ("-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=8")


@contextmanager
def ssh_connection(address: str) -> Iterator[Path]:
    """Log in to a host. Yield the socket of the connection, which ends afterwards.

    ssh asks on the terminal for a password, or whether to trust an unknown host, as always.

    Raises:
        InvalidInput: `address` is not ssh://[user@]host[:port]. HostLacks: no ssh here.
        DownloadFailed: ssh could not log in. ssh has written the reason to standard error.
    """
    destination = parse_address(address)
    program = shutil.which("ssh")
    if program is None:
        raise HostLacks("ssh is not installed", hint="sudo apt install openssh-client")
    with tempfile.TemporaryDirectory(prefix="bough-ssh-") as directory:
        control = Path(directory) / "c"
        command = [program, "-M", "-N", "-f", "-S", str(control), "-o", "ControlPersist=yes", *_ALIVE]
        done = subprocess.run([*command, *destination.options], check=False)
        if done.returncode != 0:
            raise DownloadFailed(
                f"ssh could not log in to {destination}",
                hint=f"ssh's own message is above; try: ssh {' '.join(destination.options)} true",
                url=str(destination),
            )
        try:
            yield control
        finally:
            _end(program, control, destination.options)


def _end(program: str, control: Path, options: list[str]) -> None:
    with_control = [program, "-S", str(control), "-O", "exit", *options]
    try:
        subprocess.run(with_control, check=False, capture_output=True, timeout=_END_S)
    except subprocess.TimeoutExpired:
        return
