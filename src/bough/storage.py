"""Durable writes: an acknowledged write survives kill -9 and a power loss; no file is half-written."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bough.errors import NoSpace
from bough.units import format_size

#: Names made by tempfile.mkstemp from the prefix in `write_atomically`.
_UNFINISHED = re.compile(r"\..+\.[a-z0-9_]{8}")


NO_SPACE_HINT = "free some space there (`bough image prune` may help), or set BOUGH_HOME elsewhere"


@contextmanager
def no_space_is_told(what: str, where: Path) -> Iterator[None]:
    """Turn ENOSPC and EDQUOT into NoSpace with the name of the file system."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpace(
                f"no space left for {what} below {where}",
                hint=NO_SPACE_HINT,
                path=str(where),
            ) from error
        raise


def check_space(where: Path, needed_bytes: int, what: str) -> None:
    """Raise NoSpace if the file system has less space free than `what` needs: "a build"."""
    info = os.statvfs(where)
    free = info.f_bavail * info.f_frsize
    if free < needed_bytes:
        raise NoSpace(
            f"{where} has {format_size(free)} free, {what} needs {format_size(needed_bytes)}",
            hint=NO_SPACE_HINT,
            path=str(where),
        )


def sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(root: Path) -> None:
    """Sync all files and directories below `root`. Links are not followed: a guest may have made them."""
    for directory, _, names in os.walk(root):
        for name in names:
            path = Path(directory, name)
            if path.is_file() and not path.is_symlink():
                sync_file(path)
        sync_directory(Path(directory))


def write_atomically(path: Path, content: bytes, *, mode: int = 0o600, durable: bool = True) -> None:
    """Replace `path` as a whole: temporary file, fsync, rename, fsync of the directory.

    Args:
        durable: survive a power loss, too, not only the end of this process.
    """
    with no_space_is_told(path.name, path.parent):
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(content)
                stream.flush()
                os.fchmod(stream.fileno(), mode)
                if durable:
                    os.fsync(stream.fileno())
            Path(temporary).rename(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        if durable:
            sync_directory(path.parent)


def is_unfinished_write(name: str) -> bool:
    """Return whether a file of this name is left from a `write_atomically` that was killed."""
    return _UNFINISHED.fullmatch(name) is not None


def write_json(path: Path, value: Any, *, mode: int = 0o600) -> None:
    write_atomically(path, json.dumps(value, indent=1).encode() + b"\n", mode=mode)


def copy_holes(source: Path, target: Path) -> None:
    """Copy a file; each block of 64 KiB of zeros becomes a hole."""
    with source.open("rb", buffering=0) as reading, target.open("xb", buffering=0) as writing:
        while block := reading.read(65536):
            if block.strip(b"\0"):
                writing.write(block)
            else:
                writing.seek(len(block), os.SEEK_CUR)
        writing.truncate(reading.tell())


def read_tail(path: Path, limit_bytes: int = 4096) -> str:
    """Return the end of a guest's or QEMU's log, bad UTF-8 replaced; "" if the file is missing."""
    try:
        with path.open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, size - limit_bytes))
            return stream.read(limit_bytes).decode(errors="replace")
    except FileNotFoundError:
        return ""


def remove_tree(path: Path) -> None:
    """Remove a file or a tree. A jailed QEMU's user may own files inside, this user owns the directories."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=False, onerror=_make_removable)
    else:
        path.unlink(missing_ok=True)


def _make_removable(function: Any, path: str, error: Any) -> None:
    if isinstance(error[1], FileNotFoundError):
        return
    Path(path).parent.chmod(0o700)
    function(path)
