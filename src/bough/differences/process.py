"""Start the program that compares two systems, in a jail without any file but its own modules.

The program gets the disks as open files. So it needs no right of a user, and can open nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import stat
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bough.differences.disk import Disk, DiskStream, DiskUnreadable
from bough.differences.program import RUN
from bough.errors import BoughError, InvalidInput
from bough.images.confined import Confinement, render_confined
from bough.images.linux_disk.volumes import read_volumes
from bough.images.overlays import layer_format
from bough.progress import Progress, Report
from bough.progress_watch import ProgressWatch, Stalled
from bough.qemu.pid import Wrapped
from bough.qemu.subprocesses import end_subprocess, start_subprocess
from bough.tasks import finish

#: Bytes of files that are read to compare them; beyond, size and time decide.
_MOST_READ_BYTES = 8 << 30
#: Processor time without a report, and the end in any case.
_QUIET_S, _MOST_S = 120.0, 1800.0
_MOST_ANSWER_BYTES = 64 << 20
_MOST_ERROR_BYTES = 4000
_MOST_TEXT = 256 << 10
#: Words in a reason of the program -> the hint.
_HINTS = {
    "LUKS": "bough reads no encrypted disk; compare it from inside, by bough exec",
    "BitLocker": "bough reads no encrypted disk",
    "NTFS": "bough compares the files of Linux; the disk seems to be of Windows",
    "xfs": "bough compares ext2, ext3 and ext4; compare other file systems from inside, by bough exec",
    "btrfs": "bough compares ext2, ext3 and ext4; compare other file systems from inside, by bough exec",
}


@dataclass(frozen=True)
class Side:
    """One side of a comparison.

    Attributes:
        name: for people.
        disks: for each disk its files, the nearest overlay first. No program writes to them meanwhile.
    """

    name: str
    disks: Sequence[Sequence[Path]]


async def compare(before: Side, after: Side, confinement: Confinement, report: Report) -> dict[str, Any]:
    """Return the differences of two systems; see program.py.

    Raises:
        InvalidInput: a side has no Linux in a file system that bough reads.
        BoughError: the program failed, or took too long.
        HostLacks: a part of the jail is missing.
    """
    with contextlib.ExitStack() as opened:
        request: dict[str, Any] = {"most_bytes": _MOST_READ_BYTES}
        for key, side in (("before", before), ("after", after)):
            disks = [list(opened.enter_context(_open_chain(chain, side))) for chain in side.disks]
            request[key] = await asyncio.to_thread(_describe, side, disks)
        descriptors = [
            number
            for key in ("before", "after")
            for disk in request[key]["disks"]
            for number in disk["descriptors"]
        ]
        answer = await _run(request, descriptors, confinement, report)
    if "error" in answer:
        name = {"before": before.name, "after": after.name}.get(answer.get("side", ""))
        raise _unreadable(name or f"{before.name} and {after.name}", str(answer["error"]))
    result = answer.get("result")
    if not isinstance(result, dict):
        raise BoughError("the comparison failed: its answer is broken")
    return {str(key): _cleaned(value) for key, value in result.items()}


@contextlib.contextmanager
def _open_chain(chain: Sequence[Path], side: Side) -> Iterator[Sequence[tuple[int, str]]]:
    """Open the files of a disk: descriptors and formats."""
    with contextlib.ExitStack() as opened:
        found = []
        for path in chain:
            try:
                # A guest's QEMU can replace its disk by any file. O_NONBLOCK: by a FIFO, too.
                flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
                descriptor = os.open(path, flags)
            except OSError as error:
                raise BoughError(f"{path} of {side.name} cannot be opened: {error.strerror}") from error
            opened.callback(os.close, descriptor)
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise BoughError(f"{path} of {side.name} is not a regular file")
            found.append((descriptor, layer_format(path)))
        yield found


def _describe(side: Side, disks: Sequence[Sequence[tuple[int, str]]]) -> dict[str, Any]:
    """Return a side as the program gets it. Blocking."""
    described: dict[str, Any] = {"disks": [], "volumes": []}
    for number, chain in enumerate(disks):
        descriptors, formats = [one[0] for one in chain], [one[1] for one in chain]
        described["disks"].append({"descriptors": descriptors, "formats": formats})
        try:
            stream = io.BufferedReader(DiskStream(Disk(descriptors, formats)))
            volumes = read_volumes(stream)
        except DiskUnreadable as error:
            raise _unreadable(side.name, str(error)) from None
        described["volumes"] += [
            {
                "disk": number,
                "name": volume.name,
                "kind": volume.kind.value,
                "offset_bytes": volume.offset_bytes,
                "size_bytes": volume.size_bytes,
            }
            for volume in volumes
        ]
    return described


def _unreadable(name: str, why: str) -> InvalidInput:
    hint = next((hint for word, hint in _HINTS.items() if word in why), None)
    return InvalidInput(f"{name} cannot be compared: {_clean_text(why)}", hint=hint)


async def _run(
    request: dict[str, Any], descriptors: Sequence[int], confinement: Confinement, report: Report
) -> dict[str, Any]:
    """Run the program, and return its last line."""
    package = Path(__file__).parents[1]
    program = os.path.realpath(sys.executable)
    words = [program, "-I", "-S", "-c", RUN, str(package.parent)]
    process = await start_subprocess(
        *render_confined(confinement, words, read_only=(package,)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        limit=_MOST_ANSWER_BYTES,
        pass_fds=tuple(dict.fromkeys(descriptors)),
        cwd="/",
        env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"},
    )
    try:
        return await _read_answer(process, request, report)
    finally:
        await finish(end_subprocess(process))


async def _read_answer(
    process: asyncio.subprocess.Process, request: dict[str, Any], report: Report
) -> dict[str, Any]:
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    errors = asyncio.create_task(_read_errors(process.stderr))
    process.stdin.write(json.dumps(request).encode())
    process.stdin.close()
    try:
        while True:
            watch = ProgressWatch(_QUIET_S, most_s=_MOST_S, work=Wrapped(process.pid))
            line = await watch.run(process.stdout.readline())
            if not line:
                raise BoughError("the comparison failed", output=await errors)
            answer = dict(json.loads(line))
            if isinstance(answer.get("progress"), int):
                report(Progress(f"comparing files: {answer['progress']:,}"))
            else:
                return answer
    except Stalled as error:
        raise BoughError(f"the comparison did not end {error}") from None
    except (ValueError, TypeError):
        raise BoughError("the comparison failed: its answer is too long, or broken") from None
    finally:
        errors.cancel()


async def _read_errors(stream: asyncio.StreamReader) -> str:
    kept = b""
    while data := await stream.read(64 << 10):
        kept = (kept + data)[-_MOST_ERROR_BYTES:]
    return kept.decode(errors="replace").strip()


def _cleaned(value: Any) -> Any:
    """Return the program's answer without control characters: the program has read a guest's files."""
    if isinstance(value, str):
        return _clean_text(value)
    if isinstance(value, list):
        return [_cleaned(one) for one in value]
    if isinstance(value, dict):
        return {_clean_text(str(key)): _cleaned(one) for key, one in value.items()}
    return value


def _clean_text(text: str) -> str:
    text = text[:_MOST_TEXT]
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)
