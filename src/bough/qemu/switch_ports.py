"""A QEMU process and the process's ports at the switches of networks: visible directories, and rights."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from bough.networks.switch_port import SwitchPort
from bough.qemu.nic import port_directory
from bough.qemu.plan import NicPlan


def seen_ports(nics: Sequence[NicPlan]) -> tuple[tuple[str, str], ...]:
    """Return the directory of each port, on the host and in the jail."""
    return tuple((nic.port.directory, port_directory(nic, jailed=True)) for nic in nics if nic.port)


def make_ports(nics: Sequence[NicPlan], uid: int | None) -> None:
    """Give the directories to QEMU's user under a root service. Make missing directories.

    The group of a directory stays: the switch's group. The switch also creates a socket in the directory.

    Raises:
        OSError: the directory of the network is missing.
    """
    for port in _ports(nics):
        directory = Path(port.directory)
        directory.mkdir(mode=0o770, exist_ok=True)
        if uid is not None:
            os.chown(directory, uid, -1, follow_symlinks=False)
            directory.chmod(0o770)  # for any umask


def clear_ports(nics: Sequence[NicPlan]) -> None:
    """Remove the sockets of an ended QEMU. A new QEMU replaces a socket itself; a captured process does not.

    Raises:
        OSError: another kind of file is there.
    """
    for port in _ports(nics):
        Path(port.nic_socket).unlink(missing_ok=True)


def open_ports(nics: Sequence[NicPlan], uid: int | None) -> None:
    """Allow the switches, which run as other users under a root service, to send frames to QEMU's sockets.

    Raises:
        OSError: QEMU has no socket there.
    """
    for port in _ports(nics) if uid is not None else ():
        # The directory is QEMU's: the name may lead to another file.
        file = os.open(port.nic_socket, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            if stat.S_ISSOCK(os.fstat(file).st_mode):
                os.chmod(f"/proc/self/fd/{file}", 0o666)  # noqa: PTH101
        finally:
            os.close(file)


def _ports(nics: Sequence[NicPlan]) -> list[SwitchPort]:
    return [nic.port for nic in nics if nic.port is not None]
