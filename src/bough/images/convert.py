"""Convert any disk image to the sparse raw file of the store, with programs in a jail."""

from __future__ import annotations

import asyncio
import json
import os
import re
import stat
from pathlib import Path
from typing import Any

from bough.errors import BadImage, BoughError, NoSpace
from bough.images.confined import Confinement, Done, find_program, run_confined
from bough.images.formats import COMPRESSIONS, Header
from bough.progress import Progress, Report
from bough.units import MIB, format_size

#: Free space that an import leaves.
_SPARE_BYTES = 256 * MIB
_PERCENT = re.compile(rb"\((\d+(?:\.\d+)?)/100%\)")


async def convert(
    source: Path, header: Header, target: Path, confinement: Confinement, report: Report
) -> None:
    """Write the disk in `source` to `target`, which must not exist yet.

    Raises:
        BadImage: qemu-img found damage, or wrote a disk of another size than the header says.
        NoSpace, HostLacks
    """
    qemu_img = find_program("qemu-img")
    format = "raw" if header.format in ("iso", "vhd") else header.format
    if format != "raw":
        await _check(qemu_img, source, format, confinement)
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(descriptor, header.size_bytes)
    finally:
        os.close(descriptor)
    confinement.give(target)
    step = f"converting {format_size(header.size_bytes)} from {header.format}"
    report(Progress(step, 0.0))

    async def told(data: bytes) -> None:
        for percent in _PERCENT.findall(data):
            report(Progress(step, min(1.0, float(percent) / 100)))

    read = ["-f", format, str(source)]
    if header.format == "vhd":  # leave out the 512 bytes after the disk
        named = str(source).replace(",", ",,")
        read = ["--image-opts", f"driver=raw,size={header.size_bytes},file.driver=file,file.filename={named}"]
    done = await run_confined(
        confinement,
        # -n: the file exists, with the size that bough has read from the header and allowed.
        [qemu_img, "convert", "-p", "-n", "--target-is-zero", "-O", "raw", *read, str(target)],
        read_only=(source,),
        writable=(target,),
        on_output=told,
    )
    if done.status != 0:
        raise _refused(done, format, target)
    confinement.take_back(target)
    await asyncio.to_thread(sync_image, target, header.size_bytes)


async def _check(qemu_img: str, source: Path, format: str, confinement: Confinement) -> None:
    """Refuse a damaged image. Without this check, missing parts would read as zeros."""
    heard = bytearray()

    async def told(data: bytes) -> None:
        heard.extend(data[: 64 * 1024 - len(heard)])

    done = await run_confined(
        confinement,
        [qemu_img, *("check", "--output=json", "-f", format, str(source))],
        read_only=(source,),
        on_output=told,
    )
    if done.status not in (0, 3, 63):  # 3: leaked clusters, harmless; 63: no check for this format
        raise _refused(done, format, source, bytes(heard))
    end = _parse(bytes(heard)).get("image-end-offset")
    size = source.stat().st_size
    if format == "qcow2" and isinstance(end, int) and end > size:
        raise BadImage(f"the qcow2 is truncated: it has {format_size(size)} of at least {format_size(end)}")


def _parse(text: bytes) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _refused(done: Done, format: str, path: Path, heard: bytes = b"") -> BoughError:
    output = re.sub(r"^qemu-img: ", "", done.output)
    if "No space left" in output or "Disk quota" in output:
        return NoSpace(
            f"no space left for the image below {path.parent}", hint="bough image prune may free some"
        )
    found = _parse(heard)
    wrong = found.get("corruptions") or found.get("check-errors")
    what = f"{wrong} errors were found" if wrong else output.rpartition("\n")[2][:300]
    return BadImage(
        f"the {format} is truncated or altered: {what or f'qemu-img ended with {done.status}'}",
        hint="is the download complete? --sha256 checks it"
        if "lock" not in output
        else "the file is in use: stop the machine that uses it",
        output=output[-2000:],
    )


def sync_image(path: Path, size_bytes: int) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        info = os.fstat(descriptor)
        if not stat.S_ISREG(info.st_mode) or info.st_size != size_bytes:
            raise BadImage("qemu-img wrote a disk of another size than the header says")
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


async def unpack(
    source: Path,
    compression: str,
    target: Path,
    confinement: Confinement,
    report: Report,
    *,
    most_bytes: int,
) -> None:
    """Decompress `source` to the sparse file `target`.

    The program can open no file. It has only an open descriptor of `source` and a pipe.

    Raises:
        BadImage: `source` is truncated or altered, or the content is larger than `most_bytes`.
        NoSpace, HostLacks
    """
    name, *options = COMPRESSIONS[compression]
    program = find_program(name)
    size = source.stat().st_size
    step = f"unpacking {format_size(size)} of {compression}"
    report(Progress(step, 0.0))
    descriptor = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with SparseWriter(target, most_bytes) as writer:

            async def take(data: bytes) -> None:
                # The program shares our descriptor, so the descriptor's position is the program's progress.
                if writer.write(data):
                    report(Progress(step, min(1.0, os.lseek(descriptor, 0, os.SEEK_CUR) / size)))
                    await asyncio.sleep(0)

            done = await run_confined(confinement, [program, *options], stdin=descriptor, on_output=take)
    finally:
        os.close(descriptor)
    if done.status != 0:
        said = done.output.rpartition("\n")[2][:200]
        raise BadImage(
            f"the {compression} file is truncated or altered: {said or f'status {done.status}'}",
            hint="is the download complete? --sha256 checks it",
            output=done.output,
        )


class SparseWriter:
    """Writer of a file of at most `most_bytes`. Zeros become holes."""

    def __init__(self, target: Path, most_bytes: int) -> None:
        self._target = target
        self._most_bytes = most_bytes
        self._descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._size = self._told = 0

    def __enter__(self) -> SparseWriter:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            os.ftruncate(self._descriptor, self._size)
        finally:
            os.close(self._descriptor)

    def write(self, data: bytes) -> bool:
        """Append data. Return True about every 16 MiB: a good moment to report progress.

        Raises:
            BadImage: the file would be larger than allowed.
            NoSpace
        """
        if self._size + len(data) > self._most_bytes:
            raise BadImage(
                f"the unpacked file is larger than the limit of {format_size(self._most_bytes)}",
                hint="raise the limit with --max-size",
            )
        try:
            if data.count(0) != len(data):
                os.pwrite(self._descriptor, data, self._size)
        except OSError as error:
            raise NoSpace(f"writing below {self._target.parent}: {error.strerror}") from error
        self._size += len(data)
        if self._size - self._told < 16 * MIB:
            return False
        self._told = self._size
        check_space(self._target.parent)
        return True


def check_space(where: Path, needed_bytes: int = 0) -> None:
    """Check the free space of a file system. A reserve stays free for other programs.

    Raises:
        NoSpace: less than `needed_bytes` and the reserve is free.
    """
    stat_ = os.statvfs(where)
    free = stat_.f_bavail * stat_.f_frsize
    if free < needed_bytes + _SPARE_BYTES:
        raise NoSpace(
            f"{where} has {format_size(free)} free, which is not enough",
            hint="free some space (`bough image prune` may help), or set BOUGH_HOME elsewhere",
            path=str(where),
        )
