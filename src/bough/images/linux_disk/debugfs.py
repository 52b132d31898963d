"""The files of an ext2, ext3 or ext4 file system, by debugfs (e2fsprogs) in the jail. Nothing is mounted.

One debugfs answers all questions about a file system: starting a jail takes longer than an answer. A secret
word separates the answers, so the content of a file cannot pass for an answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import secrets
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import BinaryIO

from bough.images.confined import Confinement, find_program, start_confined
from bough.images.linux_disk.tree import Entry, TreeUnreadable, is_usable
from bough.progress_watch import ProgressWatch, Stalled
from bough.qemu.pid import Wrapped
from bough.qemu.subprocesses import end_subprocess
from bough.tasks import finish

#: Processor time for the next piece of an answer, and the end in any case. An answer takes milliseconds. A
#: damaged file system may lead in a circle.
_QUIET_S, _MOST_S = 60.0, 900.0
_STAT_BYTES = 256 * 1024
_NAMES_BYTES = 4 * 1024 * 1024
_PIECE = 256 * 1024
#: The list of bad blocks: a file that every file system has. `cat` of it makes debugfs write out its buffer.
_FLUSH = "cat <1>"
_NOT_OPEN = "debugfs cannot open it: it is damaged, or has features of a newer Linux"
_CLOSED = b"Filesystem not open"
_STAT = re.compile(rb"Inode: (\d{1,10})\s+Type: (\w+)\s+Mode:\s+(0?[0-7]{3,6})\b")
_SIZE = re.compile(rb"\bSize: (\d{1,15})\n")
_TARGET = re.compile(rb'^Fast link dest: "([A-Za-z0-9/._+@:%,=~-]{1,60})"$', re.MULTILINE)
_LISTED = re.compile(rb"^/\d{1,10}/[0-7]{6}/\d+/\d+/([A-Za-z0-9._+@:%,=~-]{1,255})/\d*/$", re.MULTILINE)
_LABEL = re.compile(
    rb'security\.selinux \(\d+\) = "?([A-Za-z0-9_]+(?::[A-Za-z0-9_.,-]+){2,4})(?:\\000)?"?\s*$'
)


@contextlib.asynccontextmanager
async def open_debugfs(
    disk: Path, offset_bytes: int, confinement: Confinement, sources: Path | None = None
) -> AsyncIterator[Debugfs]:
    """Open a file system inside a raw disk that belongs to bough. No other program may use the disk.

    Args:
        sources: a directory with the content of new files; None: nothing is written. At a regular end, all
            changes are in the disk.

    Raises:
        TreeUnreadable: debugfs cannot open the file system, or does not end. With `sources`, the disk must
            not be used afterwards.
        HostLacks: debugfs is not installed.
    """
    argv = [
        find_program("debugfs"),
        *(("-w",) if sources else ()),
        "-f",
        "-",
        f"{disk}?offset={offset_bytes}",
    ]
    owned = sources is not None or not confinement.can_read(disk)
    if owned:
        confinement.give(disk)
    try:
        process = await start_confined(
            confinement,
            argv,
            read_only=(sources,) if sources else (disk,),
            writable=(disk,) if sources else (),
            stdin=asyncio.subprocess.PIPE,
        )
        listening = asyncio.create_task(_close_if_not_open(process))
        try:
            tree = Debugfs(process)
            await tree.check_open()
            yield tree
            if sources:
                await _wait_end(process)
        finally:
            listening.cancel()
            await finish(end_subprocess(process))
    finally:
        if owned:
            confinement.take_back(disk)


async def _wait_end(process: asyncio.subprocess.Process) -> None:
    """Let debugfs write its last changes."""
    if process.stdin is not None:
        process.stdin.close()
    try:
        await _watch(process).run(_drain(process))
    except Stalled:
        raise TreeUnreadable("debugfs does not end") from None


async def _drain(process: asyncio.subprocess.Process) -> None:
    while process.stdout is not None and await process.stdout.read(_PIECE):
        pass
    await process.wait()


async def _close_if_not_open(process: asyncio.subprocess.Process) -> None:
    """End a debugfs that could not open the file system. It would not write out its answers."""
    heard = b""
    while process.stderr is not None and (data := await process.stderr.read(_PIECE)):
        heard = heard[-len(_CLOSED) :] + data
        if _CLOSED in heard and process.stdin is not None:
            process.stdin.close()


class Debugfs:
    """An open file system; a `Tree`. Not for several tasks at once."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def check_open(self) -> None:
        """Raise TreeUnreadable if debugfs could not open the file system."""
        (text,) = await self._ask(["stat <2>"], _STAT_BYTES)
        root = _parse_stat(text)
        if root is None or root.kind != "directory":
            raise TreeUnreadable(_NOT_OPEN)

    async def look(self, paths: Sequence[str]) -> dict[str, Entry]:
        wanted = [path for path in paths if is_usable(path)]
        texts = await self._ask([f"stat {path}" for path in wanted], _STAT_BYTES)
        entries = {path: _parse_stat(text) for path, text in zip(wanted, texts, strict=True)}
        return {path: entry for path, entry in entries.items() if entry is not None}

    async def names(self, paths: Sequence[str]) -> dict[str, list[str]]:
        wanted = [path for path in paths if is_usable(f"{path}/.")]
        texts = await self._ask([f"ls -p {path}/." for path in wanted], _NAMES_BYTES)
        return {
            path: sorted({name.decode() for name in _LISTED.findall(text)} - {".", ".."})
            for path, text in zip(wanted, texts, strict=True)
            if b"/.//" in text
        }

    async def read(self, paths: Sequence[str], most_bytes: int) -> dict[str, bytes]:
        wanted = [path for path in paths if is_usable(path)]
        texts = await self._ask([f"cat {path}" for path in wanted], most_bytes + 4096)
        return dict(zip(wanted, texts, strict=True))

    async def copy(self, path: str, target: BinaryIO, most_bytes: int) -> None:
        if not is_usable(path):
            raise TreeUnreadable("a path has unusual characters")
        word = secrets.token_hex(16)
        echo = f"debugfs: cat /{word}\ndebugfs: cat {path}\n".encode()
        beginning, is_content, left = b"", False, most_bytes
        async for data in self._answer([f"cat /{word}", f"cat {path}"], word):
            piece = data
            if not is_content:
                beginning += data
                _, found, piece = beginning.partition(echo)
                is_content = bool(found)
                _check_room(len(beginning), _NAMES_BYTES)
            left -= len(piece)
            _check_room(-left, 0)
            await asyncio.to_thread(target.write, piece)

    async def read_security_labels(self, paths: Sequence[str]) -> dict[str, str]:
        """Return the SELinux context of each file that has one."""
        wanted = [path for path in paths if is_usable(path)]
        texts = await self._ask([f"ea_get {path} security.selinux" for path in wanted], _STAT_BYTES)
        matches = {path: _LABEL.search(text) for path, text in zip(wanted, texts, strict=True)}
        return {path: found[1].decode() for path, found in matches.items() if found}

    async def change(self, commands: Sequence[str]) -> None:
        """Execute commands that write. Read the files back to see whether the commands succeeded."""
        await self._ask(commands, _STAT_BYTES)

    async def _ask(self, commands: Sequence[str], most_bytes: int) -> list[bytes]:
        """Return the answer to each command. The answers have at most `most_bytes` each on average."""
        if not commands:
            return []
        heard, word = bytearray(), secrets.token_hex(16)
        between = f"cat /{word}"
        lines = [between, *(line for command in commands for line in (command, between))]
        async for data in self._answer(lines[:-1], word):
            heard += data
            _check_room(len(heard), most_bytes * len(commands))
        _, *answers = bytes(heard).split(f"debugfs: {between}\n".encode())
        if len(answers) != len(commands):
            raise TreeUnreadable("its content confuses debugfs")
        return [answer.partition(b"\n")[2] for answer in answers]

    async def _answer(self, lines: Sequence[str], word: str) -> AsyncIterator[bytes]:
        """Send commands and yield the output until the last one has ended."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write("".join(f"{line}\n" for line in (*lines, f"cat /{word}", _FLUSH)).encode())
        end = f"debugfs: cat /{word}\ndebugfs: {_FLUSH}\n".encode()
        held = b""
        while data := await self._read(stdout):
            held += data
            piece, found, _ = held.partition(end)
            if found:
                yield piece
                return
            yield held[: -len(end)]
            held = held[-len(end) :]
        raise TreeUnreadable(_NOT_OPEN)

    async def _read(self, stream: asyncio.StreamReader) -> bytes:
        try:
            return await _watch(self._process).run(stream.read(_PIECE))
        except Stalled as error:
            raise TreeUnreadable(f"debugfs gave no answer {error}") from None


def _watch(process: asyncio.subprocess.Process) -> ProgressWatch:
    return ProgressWatch(_QUIET_S, most_s=_MOST_S, work=Wrapped(process.pid))


def _check_room(used: int, room: int) -> None:
    if used > room:
        raise TreeUnreadable("its directories or files are larger than expected")


def _parse_stat(text: bytes) -> Entry | None:
    head = text[:4096]
    found, size = _STAT.match(head), _SIZE.search(head)
    if found is None or size is None:
        return None
    kind = found[2].decode()
    target = _TARGET.search(head) if kind == "symlink" else None
    return Entry(
        kind=kind,
        mode=int(found[3], 8) & 0o7777,
        size_bytes=int(size[1]),
        inode=int(found[1]),
        target=target[1].decode() if target else None,
    )
