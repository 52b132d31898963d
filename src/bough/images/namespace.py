"""Namespaces for a build. Processes that need root are root only inside the namespaces.

mmdebstrap's helper makes the namespaces: for an ordinary user including a user namespace, for root only
mounts and processes. Programs of a foreign processor need a separate binfmt_misc. The kernel (6.7 and later)
ties binfmt_misc to a user namespace. So root gets a user namespace, too, with all ids the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from bough.qemu.subprocesses import end_subprocess, start_subprocess

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_ENTER = ("mmdebstrap", "--unshare-helper", "sh", "./enter.sh")
#: Report that the user namespace exists, and wait for the ids. The shell exits if the caller exits.
_WAIT_FOR_IDS = 'echo @in; read -r _ && exec "$@"'


async def start_inside(
    work: Path,
    command: Sequence[str],
    environment: Mapping[str, str],
    *,
    binfmt: str = "",
    pass_fds: Sequence[int] = (),
) -> asyncio.subprocess.Process:
    """Start `command` in new namespaces. The working directory is `work`, mounted at /mnt.

    The process ends when the standard input is closed, and so at the latest with the caller's process. Call
    `end_subprocess` to end it earlier.

    Args:
        binfmt: a rule for binfmt_misc(5), registered only inside the namespaces.
        pass_fds: descriptors above 9 that `command` inherits.
    """
    own_users = bool(binfmt) and os.geteuid() == 0
    before = ("unshare", "--user", "sh", "-c", _WAIT_FOR_IDS, "sh") if own_users else ()
    process = await start_subprocess(
        *(*before, *_ENTER, *command),
        cwd=work,
        env={"PATH": _PATH, "HOME": "/mnt", "LC_ALL": "C.UTF-8", "BOUGH_BINFMT": binfmt, **environment},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        pass_fds=pass_fds,
    )
    if own_users:
        try:
            await _give_ids(process)
        except BaseException:
            await end_subprocess(process)
            raise
    return process


async def _give_ids(process: asyncio.subprocess.Process) -> None:
    """Map every user and group to the same id. If the process has ended already, the output has
    the reason.
    """
    assert process.stdout is not None
    assert process.stdin is not None
    if (await process.stdout.readline()).strip() != b"@in":
        return
    for name in ("uid_map", "gid_map"):
        lines = [line.split() for line in Path(f"/proc/self/{name}").read_text().splitlines()]
        ranges = "".join(f"{first} {first} {count}\n" for first, _, count in lines)
        with contextlib.suppress(OSError):  # a step that needs the ids reports the failure
            Path(f"/proc/{process.pid}/{name}").write_text(ranges)
    process.stdin.write(b"\n")
