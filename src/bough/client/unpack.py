"""A tar stream that a guest sent, as files of the host. Every byte of it may be hostile.

What makes it safe does not depend on what names look like alone: every directory is opened one part at a
time without following links, and everything is made relative to such a descriptor. So a link that came
with the tree, or that stands in the target, is never written through. Links themselves are kept as they
are: a copy of /etc without its absolute links would be no copy.

Refused: absolute names, `..`, hard links to what did not come in the same stream. Left out and listed:
devices, pipes, sockets. Taken away: set-user-id and set-group-id, and the owner.
"""

from __future__ import annotations

import os
import secrets
import tarfile
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from bough.errors import ProtocolError

MAX_DEPTH = 512
MAX_NAME_BYTES = 4096
_CHUNK = 256 * 1024
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Unpacker:
    """Extracts below the directory `root`, which exists. Use as a context manager: closes what it opened."""

    def __init__(self, root: bytes, count: Callable[[int], None] = lambda _: None) -> None:
        self._root = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._count = count
        #: The directory where the last entry went, for the next is mostly beside it.
        self._at: tuple[bytes, ...] = ()
        self._open = [self._root]
        self._came: set[tuple[bytes, ...]] = set()
        self._directories: dict[tuple[bytes, ...], tuple[int, int]] = {}
        self.files = 0
        self.bytes = 0
        self.skipped: list[str] = []

    def __enter__(self) -> Unpacker:
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in self._open:
            os.close(descriptor)
        self._open = []

    def extract(self, archive: tarfile.TarFile, member: tarfile.TarInfo, parts: tuple[bytes, ...]) -> None:
        """`member` as `parts` below the root; () is the root itself."""
        if member.isdir():
            if parts:
                self._make_directory(parts)
            self._directories[parts] = (member.mode & 0o777, mtime_ns(member))
            return
        if not parts:
            raise ProtocolError("the guest sent something that is no directory in the place of one")
        if member.isreg():
            self._write_file(archive, member, parts)
        elif member.issym():
            self._make_link(member, parts)
        elif member.islnk():
            self._link_again(member, parts)
        else:
            self.skipped.append(member.name)
            return
        self._came.add(parts)
        self.files += 1

    def finish(self) -> None:
        """Modes and times of directories: last, for a directory may be closed to its owner."""
        for parts in sorted(self._directories, key=len, reverse=True):
            mode, mtime = self._directories[parts]
            with suppress(PermissionError):  # a directory that was there before and is another's
                descriptor = self._enter(parts)
                os.fchmod(descriptor, mode)
                os.utime(descriptor, ns=(mtime, mtime))

    # -- places -----------------------------------------------------------------------------------

    def _enter(self, parts: tuple[bytes, ...]) -> int:
        """A descriptor of that directory, reached without following a link."""
        common = 0
        while common < min(len(parts), len(self._at)) and parts[common] == self._at[common]:
            common += 1
        while len(self._at) > common:
            os.close(self._open.pop())
            self._at = self._at[:-1]
        for part in parts[common:]:
            try:
                descriptor = os.open(part, _DIRECTORY, dir_fd=self._open[-1])
            except FileNotFoundError:
                os.mkdir(part, 0o700, dir_fd=self._open[-1])
                descriptor = os.open(part, _DIRECTORY, dir_fd=self._open[-1])
            self._open.append(descriptor)
            self._at = (*self._at, part)
        return self._open[-1]

    def _make_directory(self, parts: tuple[bytes, ...]) -> None:
        parent = self._enter(parts[:-1])
        with suppress(FileExistsError):
            os.mkdir(parts[-1], 0o700, dir_fd=parent)
        self._enter(parts)  # refuses a link or a file in its place

    def _place(self, parts: tuple[bytes, ...]) -> tuple[int, bytes, bytes]:
        """Directory, final name, and the name under which it is made."""
        name = parts[-1]
        return self._enter(parts[:-1]), name, b"." + name[:100] + b"." + secrets.token_hex(6).encode()

    # -- entries ----------------------------------------------------------------------------------

    def _write_file(
        self, archive: tarfile.TarFile, member: tarfile.TarInfo, parts: tuple[bytes, ...]
    ) -> None:
        directory, name, temporary = self._place(parts)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(temporary, flags, 0o600, dir_fd=directory)
        try:
            try:
                self.bytes += write_content(archive, member, descriptor, self._count)
                os.fchmod(descriptor, member.mode & 0o777)
                os.utime(descriptor, ns=(mtime_ns(member),) * 2)
            finally:
                os.close(descriptor)
            os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary, dir_fd=directory)
            raise

    def _make_link(self, member: tarfile.TarInfo, parts: tuple[bytes, ...]) -> None:
        directory, name, temporary = self._place(parts)
        os.symlink(to_bytes(member.linkname), temporary, dir_fd=directory)
        self._settle(directory, temporary, name)
        with suppress(OSError):
            times = (mtime_ns(member),) * 2
            os.utime(name, ns=times, dir_fd=directory, follow_symlinks=False)

    def _link_again(self, member: tarfile.TarInfo, parts: tuple[bytes, ...]) -> None:
        target = parse_name(to_bytes(member.linkname))
        # Its first part is what `parts` lost when the copy was given its name here.
        target = target[len(parse_name(to_bytes(member.name))) - len(parts) :]
        if target not in self._came:
            raise ProtocolError(f"the guest sent a hard link to what it did not send: {member.linkname!r}")
        source = os.dup(self._enter(target[:-1]))
        try:
            directory, name, temporary = self._place(parts)
            os.link(target[-1], temporary, src_dir_fd=source, dst_dir_fd=directory, follow_symlinks=False)
            self._settle(directory, temporary, name)
        finally:
            os.close(source)

    def _settle(self, directory: int, temporary: bytes, name: bytes) -> None:
        try:
            os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary, dir_fd=directory)
            raise
        # A rename onto another link to the same file does nothing (POSIX), and leaves both.
        with suppress(OSError):
            os.unlink(temporary, dir_fd=directory)


def write_content(
    archive: tarfile.TarFile, member: tarfile.TarInfo, descriptor: int, count: Callable[[int], None]
) -> int:
    """The content of `member`, holes as holes; no more than its header said. Returns its size."""
    # Not extractfile(): it hands out holes as zeros, and a few bytes can claim an exabyte of them.
    source: Any = archive.fileobj
    source.seek(member.offset_data)
    sparse: Any = member.sparse
    segments = list(sparse) if sparse is not None else [(0, member.size)]
    for begin, length in segments:
        if begin < 0 or length < 0 or begin + length > member.size:
            raise ProtocolError(f"the guest sent {member.name!r} with a map of holes that makes no sense")
        os.lseek(descriptor, begin, os.SEEK_SET)
        left = length
        while left:
            data = source.read(min(_CHUNK, left))
            if not data:
                raise ProtocolError(f"the guest sent less of {member.name!r} than it had said")
            _write_all(descriptor, data)
            left -= len(data)
            count(len(data))
    os.ftruncate(descriptor, member.size)
    return member.size


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def parse_name(name: bytes) -> tuple[bytes, ...]:
    """The parts of an entry's name; () for ".".

    Raises:
        ProtocolError: it is absolute, leads upwards, or is beyond all measure.
    """
    parts = tuple(part for part in name.split(b"/") if part not in (b"", b"."))
    if name.startswith(b"/") or b".." in parts or b"\0" in name:
        raise ProtocolError(f"the guest sent a file with a name that leads elsewhere: {name[:200]!r}")
    if len(parts) > MAX_DEPTH or len(name) > MAX_NAME_BYTES or any(len(part) > 255 for part in parts):
        raise ProtocolError(f"the guest sent a file with a name that is too long: {name[:60]!r}...")
    return parts


def to_bytes(name: str) -> bytes:
    """A name as the guest had it; tarfile keeps bytes that are no UTF-8 as surrogates."""
    return name.encode("utf-8", "surrogateescape")


def mtime_ns(member: tarfile.TarInfo) -> int:
    """To the nanosecond where the archive has it; within what every file system can keep."""
    text = member.pax_headers.get("mtime", "")
    seconds, _, rest = text.partition(".")
    if seconds.isdigit() and len(seconds) < 12 and (rest.isdigit() or not rest):
        exact = int(seconds) * 1_000_000_000 + int((rest + "000000000")[:9])
    else:
        exact = int(member.mtime * 1_000_000_000) if abs(member.mtime) < 1e12 else 0
    return max(-(2**31) * 1_000_000_000, min(exact, (2**33) * 1_000_000_000))
