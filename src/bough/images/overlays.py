"""Read qcow2 files that a guest's QEMU could write, without trust in the headers.

A guest's QEMU is hostile and may write the machine's disks. A header can name any file of the host as backing
file or data file, and qemu-img opens these files. So bough opens a disk as a chain of files from the record,
each with its format, and in the jail. A file with external data, or a file that is not regular, is refused.
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

#: qemu-img check takes minutes for a disk of some TiB. A hostile guest can build a disk that takes for ever.
CHECK_TIMEOUT_S = 900.0
_MAGIC = b"QFI\xfb"
_EXTERNAL_DATA = 1 << 2  # incompatible feature, docs/interop/qcow2.txt
_REPORT_BYTES = 64 * 1024


def layer_format(path: str | Path) -> Literal["raw", "qcow2"]:
    return "qcow2" if str(path).endswith(".qcow2") else "raw"


def read_backing(path: Path) -> Path | None:
    """Return the backing file that a qcow2's header names; None without a backing file, or for a raw disk.

    Raises:
        OSError, ValueError: the file is not regular, is damaged, or has the data in another file.
    """
    # O_NONBLOCK: do not wait for a writer if the file is a FIFO.
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as stream:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError("it is not a regular file")
        header = stream.read(80)
        if header[:4] != _MAGIC:
            if layer_format(path) == "qcow2":
                raise ValueError("it is not a qcow2 file")
            return None
        if layer_format(path) == "raw":
            return None  # a raw disk whose content begins like a qcow2
        if len(header) < 80:
            raise ValueError("its header is cut off")
        version, offset, length = struct.unpack(">IQI", header[4:20])
        if version >= 3 and struct.unpack(">Q", header[72:80])[0] & _EXTERNAL_DATA:
            raise ValueError("its header names an external data file, which bough never uses")
        if offset == 0:
            return None
        if length > 1023:
            raise ValueError("the name of its backing file is too long")
        stream.seek(offset)
        name = stream.read(length)
    if b"\0" in name or not name:
        raise ValueError("the name of its backing file is not valid")
    return Path(os.path.normpath(path.parent / os.fsdecode(name)))


def render_chain(files: Sequence[Path]) -> str:
    """Return qemu-img's name of a chain. `files` begins with the overlay; file names tell formats.

    Raises:
        BoughError: a file is damaged or has the wrong format.
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
    """The result of `qemu-img check`.

    Attributes:
        status: 0: no error; 3: leaked clusters, which are no damage.
        report: the JSON of qemu-img, untrusted.
    """

    status: int
    report: dict[str, Any]
    why: str


async def check_disk(path: Path, confinement: Confinement, *, repair: bool = False) -> Check:
    """Check a single file. The backing file is not opened.

    Args:
        repair: free leaked clusters.

    Raises:
        BoughError: the header is wrong, or qemu-img does not end in time.
        HostLacks
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
