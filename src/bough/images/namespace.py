"""The namespaces that a build runs in: everything that wants to be root is root only in there.

mmdebstrap's helper makes them: of users too for an ordinary user, of mounts and processes alone for real
root. To run programs of another processor they need binfmt_misc of their own, which the kernel (6.7 and
later) ties to a user namespace: real root gets one as well then, in which every user is itself.
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
#: Says that it is in its user namespace and waits for its ids. Ends with what it waits for.
_WAIT_FOR_IDS = 'echo @in; read -r _ && exec "$@"'


async def start_inside(
    work: Path, command: Sequence[str], environment: Mapping[str, str], *, binfmt: str = ""
) -> asyncio.subprocess.Process:
    """Start `command` in namespaces of its own; its working directory is `work`, at /mnt.

    It ends when its standard input does, so when this process ends, however that happens; before that by
    `end_subprocess`.

    Args:
        binfmt: a rule for binfmt_misc(5), registered in there and nowhere else.
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
    )
    if own_users:
        try:
            await _give_ids(process)
        except BaseException:
            await end_subprocess(process)
            raise
    return process


async def _give_ids(process: asyncio.subprocess.Process) -> None:
    """Every user and group is itself in there. One that has ended already tells why by its output."""
    assert process.stdout is not None
    assert process.stdin is not None
    if (await process.stdout.readline()).strip() != b"@in":
        return
    for name in ("uid_map", "gid_map"):
        lines = [line.split() for line in Path(f"/proc/self/{name}").read_text().splitlines()]
        ranges = "".join(f"{first} {first} {count}\n" for first, _, count in lines)
        with contextlib.suppress(OSError):  # told by what fails for the lack of it
            Path(f"/proc/{process.pid}/{name}").write_text(ranges)
    process.stdin.write(b"\n")
