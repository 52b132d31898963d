"""Run a program on untrusted bytes, in a jail like QEMU's, with access to its own files only."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bough.errors import HostLacks
from bough.qemu.jail import Jail, Sight, machine_uid, render_jail
from bough.qemu.subprocesses import end_subprocess, start_subprocess

#: qemu-img and the decompressors stay far below this limit. Above the limit, malloc fails.
_MOST_MEMORY_KIB = 4 * 1024 * 1024
_OUTPUT_BYTES = 16 * 1024
_LIMITED = 'ulimit -c 0; ulimit -v "$1"; shift; exec "$@"'


@dataclass(frozen=True)
class Confinement:
    """The jail of one import. Under a root service, the import's programs run as a separate user.

    Attributes:
        uid: the user's id; None unless the service is root.
    """

    jail: Jail
    uid: int | None = field(
        default_factory=lambda: machine_uid(secrets.token_hex(8)) if os.geteuid() == 0 else None
    )

    def give(self, path: Path) -> None:
        """Make the jail's user the owner of `path`. The jail's mounts decide about writing."""
        if self.uid is not None and self.jail.setpriv:
            os.chown(path, self.uid, self.uid, follow_symlinks=False)

    def take_back(self, path: Path) -> None:
        if self.uid is not None:
            os.chown(path, os.geteuid(), os.getegid(), follow_symlinks=False)

    def can_read(self, path: Path) -> bool:
        """Return whether the jail's user can read a file whose mode bough must not change."""
        return self.uid is None or not self.jail.setpriv or bool(path.stat().st_mode & 0o004)


@dataclass(frozen=True)
class Done:
    status: int
    output: str


def find_program(name: str) -> str:
    """Return the path of a program.

    Raises:
        HostLacks: the program is not installed.
    """
    path = shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")
    if path is None:
        packages = {"qemu-img": "qemu-utils", "xz": "xz-utils", "zstd": "zstd", "mdir": "mtools"}
        packages |= dict.fromkeys(("debugfs", "e2fsck"), "e2fsprogs")
        raise HostLacks(
            f"{name} is not installed",
            hint=f"sudo apt install {packages.get(name, name)} (the name may differ on other distributions)",
        )
    return path


def render_confined(
    confinement: Confinement,
    argv: Sequence[str],
    *,
    read_only: Sequence[Path] = (),
    writable: Sequence[Path] = (),
) -> list[str]:
    """Wrap `argv` in the jail. Inside bubblewrap the program ends with this process."""
    limited = ["/bin/sh", "-c", _LIMITED, "sh", str(_MOST_MEMORY_KIB), *argv]
    sight = Sight(argv[0], tuple(map(str, writable)), tuple(map(str, read_only)))
    words = render_jail(confinement.jail, sight, limited, uid=confinement.uid)
    if confinement.jail.bwrap is not None:
        words[1:1] = ["--die-with-parent"]
    return words


async def start_confined(
    confinement: Confinement,
    argv: Sequence[str],
    *,
    read_only: Sequence[Path] = (),
    writable: Sequence[Path] = (),
    stdin: int,
) -> asyncio.subprocess.Process:
    """Start a program with pipes for its output. The caller ends it by `end_subprocess`.

    Args:
        stdin: an open file, or asyncio.subprocess.PIPE or DEVNULL.
    """
    return await start_subprocess(
        *render_confined(confinement, argv, read_only=read_only, writable=writable),
        stdin=stdin,
        limit=512 * 1024,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd="/",
        env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"},
    )


async def run_confined(
    confinement: Confinement,
    argv: Sequence[str],
    *,
    read_only: Sequence[Path] = (),
    writable: Sequence[Path] = (),
    stdin: int | None = None,
    on_output: Callable[[bytes], Awaitable[None]] | None = None,
) -> Done:
    """Run a program until its end. Cancelling kills the program.

    `Done.output` is the end of the program's output, which is untrusted.

    Args:
        stdin: an open file.
        on_output: receives the standard output in pieces. The program waits while a piece is handled.
    """
    process = await start_confined(
        confinement,
        argv,
        read_only=read_only,
        writable=writable,
        stdin=asyncio.subprocess.DEVNULL if stdin is None else stdin,
    )
    kept: deque[bytes] = deque()

    async def keep(data: bytes) -> None:
        kept.append(data)
        while sum(map(len, kept)) > _OUTPUT_BYTES and len(kept) > 1:
            kept.popleft()

    async def drain(stream: asyncio.StreamReader | None, take: Callable[[bytes], Awaitable[None]]) -> None:
        while stream is not None and (data := await stream.read(256 * 1024)):
            await take(data)

    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(drain(process.stdout, on_output or keep))
            group.create_task(drain(process.stderr, keep))
        status = await process.wait()
    except BaseExceptionGroup as group_error:
        await end_subprocess(process)
        raise group_error.exceptions[0] from None
    except BaseException:
        await end_subprocess(process)
        raise
    return Done(status, b"".join(kept).decode(errors="replace").strip()[-4000:])
