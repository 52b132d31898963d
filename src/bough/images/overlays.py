"""qcow2 files that a guest's QEMU could write: read without believing what their headers name.

A QEMU is hostile, and the disks of its machine are its to write: a header can say that the disk stands on
any file of the host, or that its data is in one, and qemu-img opens what a header names. So a disk is
opened as a chain of files that the record knows, each with its format, and in the jail; what is said to
have its data elsewhere, or is no regular file, is refused.
"""

from __future__ import annotations

import asyncio
import json
import os
import stat
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bough.errors import BoughError
from bough.images.confined import Confinement, find_program, run_confined

#: qemu-img check of a disk of some TiB takes minutes; of one that a guest built to be slow, for ever.
CHECK_TIMEOUT_S = 900.0
_MAGIC = b"QFI\xfb"
_EXTERNAL_DATA = 1 << 2  # incompatible feature, docs/interop/qcow2.txt
_REPORT_BYTES = 64 * 1024


def layer_format(path: str | Path) -> Literal["raw", "qcow2"]:
    return "qcow2" if str(path).endswith(".qcow2") else "raw"


def read_backing(path: Path) -> Path | None:
    """What the header of a qcow2 file names as its backing file; None for none, and for a raw disk.

    Raises:
        OSError, ValueError: it is no regular file, is damaged, or has its data elsewhere.
    """
    # Not to wait for somebody to write to a FIFO.
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as stream:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError("this is no regular file")
        header = stream.read(80)
        if header[:4] != _MAGIC:
            if layer_format(path) == "qcow2":
                raise ValueError("this is no qcow2 file")
            return None
        if layer_format(path) == "raw":
            return None  # a disk that begins so
        if len(header) < 80:
            raise ValueError("its header is cut off")
        version, offset, length = struct.unpack(">IQI", header[4:20])
        if version >= 3 and struct.unpack(">Q", header[72:80])[0] & _EXTERNAL_DATA:
            raise ValueError("its data is said to be in another file, which bough never does")
        if offset == 0:
            return None
        if length > 1023:
            raise ValueError("the name of its backing file is too long")
        stream.seek(offset)
        name = stream.read(length)
    if b"\0" in name or not name:
        raise ValueError("the name of its backing file is no name")
    return Path(os.path.normpath(path.parent / os.fsdecode(name)))


def render_chain(files: Sequence[Path]) -> str:
    """The disk that `files` are, the nearest first, for qemu-img to open: as we know it to be made.

    Raises:
        BoughError: one of them is not what it should be.
    """
    node: dict[str, Any] | None = None
    for path in reversed(files):
        try:
            read_backing(path)
        except (OSError, ValueError) as error:
            raise BoughError(f"{path} is damaged: {error}") from error
        format = layer_format(path)
        above: dict[str, Any] = {"driver": format, "file": {"driver": "file", "filename": str(path)}}
        if format == "qcow2":
            above["backing"] = node
        node = above
    return f"json:{json.dumps(node)}"


@dataclass(frozen=True)
class Check:
    """What `qemu-img check` found.

    Attributes:
        status: 0: nothing; 3: clusters that nothing uses, which is no damage.
        report: its own, untrusted.
    """

    status: int
    report: dict[str, Any]
    why: str


async def check_disk(path: Path, confinement: Confinement, *, repair: bool = False) -> Check:
    """Of one file; what it stands on is not opened.

    Args:
        repair: give clusters back that nothing uses.

    Raises:
        BoughError: its header is not right, or qemu-img does not come to an end. HostLacks
    """
    printed = bytearray()

    async def keep(data: bytes) -> None:
        printed.extend(data[: max(0, _REPORT_BYTES - len(printed))])

    options = ["-r", "leaks"] if repair else []
    words = [find_program("qemu-img"), "check", "--output=json", *options, render_chain([path])]
    read_only, writable = ((), (path,)) if repair else ((path,), ())
    try:
        async with asyncio.timeout(CHECK_TIMEOUT_S):
            done = await run_confined(
                confinement, words, read_only=read_only, writable=writable, on_output=keep
            )
    except TimeoutError as error:
        raise BoughError(f"qemu-img check of {path} did not end within {CHECK_TIMEOUT_S:g} s") from error
    try:
        report = dict(json.loads(printed))
    except (ValueError, TypeError, RecursionError):
        report = {}
    return Check(done.status, report, done.output[-500:])
