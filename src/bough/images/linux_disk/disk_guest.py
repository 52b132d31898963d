"""A throw-away guest that mounts volumes of a disk: for file systems that no program of the host can write.

The guest has the volumes as disks, a small Python program (inside/reader.py), and one virtio-serial port to
this process. It has no network. Its QEMU runs in the jail, and is emulated: the guest lives for seconds. The
guest is as untrusted as the disk: each answer is bounded and checked.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import re
import struct
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from bough.images.confined import Confinement, start_confined
from bough.images.linux_disk.guest_parts import Boot, GuestParts
from bough.images.linux_disk.magic import Kind
from bough.images.linux_disk.tree import Entry, TreeUnreadable, is_usable
from bough.images.linux_disk.volumes import Volume
from bough.progress_watch import ProgressWatch, Stalled
from bough.qemu.argv import SANDBOX
from bough.qemu.pid import Wrapped
from bough.qemu.subprocesses import end_subprocess
from bough.tasks import finish
from bough.units import MIB

#: QEMU's processor time to the first word (5 s on a quiet host), and to an answer; the end in any case.
_START_S, _ANSWER_S, _MOST_S = 120.0, 60.0, 1200.0
_MOST_ANSWER = 32 * MIB
_PIECE = 4 * MIB
_MACHINES = {"x86_64": ("q35", "qemu64"), "aarch64": ("virt", "cortex-a57")}
#: Mount options that change nothing on the disk, not even for a log that needs a replay.
_READING = {Kind.XFS: "ro,norecovery", Kind.BTRFS: "ro,rescue=nologreplay", Kind.F2FS: "ro,norecovery"}
MOUNTABLE = tuple(_READING)
_WORD = re.compile(r"[A-Za-z0-9._+@:%,=~-]{1,255}")
_LABEL = re.compile(r"[A-Za-z0-9_]+(?::[A-Za-z0-9_.,-]+){2,4}")


@contextlib.asynccontextmanager
async def start_disk_guest(
    disk: Path,
    volumes: Sequence[Volume],
    parts: GuestParts,
    confinement: Confinement,
    boot: Boot,
    *,
    writes: bool,
) -> AsyncIterator[DiskGuest]:
    """Boot the guest with volumes of a raw disk that belongs to bough, and end it afterwards.

    Args:
        writes: the guest may write to the volumes. What it has unmounted is in the disk.

    Raises:
        TreeUnreadable: the guest does not start.
    """
    argv = render_guest(disk, volumes, parts, boot, writes=writes)
    files = (parts.agent_disk, boot.kernel, boot.initrd)
    for path in (disk, boot.kernel, boot.initrd):
        confinement.give(path)
    try:
        process = await start_confined(
            confinement,
            argv,
            read_only=files if writes else (*files, disk),
            writable=(disk,) if writes else (),
            stdin=asyncio.subprocess.PIPE,
        )
        listening = asyncio.create_task(_drain(process))
        try:
            guest = DiskGuest(process)
            await guest.wait_ready()
            yield guest
        finally:
            listening.cancel()
            await finish(end_subprocess(process))
    finally:
        for path in (disk, boot.kernel, boot.initrd):
            confinement.take_back(path)


async def _drain(process: asyncio.subprocess.Process) -> None:
    while process.stderr is not None and await process.stderr.read(64 * 1024):
        pass


def render_guest(
    disk: Path, volumes: Sequence[Volume], parts: GuestParts, boot: Boot, *, writes: bool
) -> list[str]:
    """Return QEMU's command line. Each volume is a disk whose serial number has its place in `volumes`."""
    machine, cpu = _MACHINES[parts.arch]
    words = [
        parts.qemu,
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-serial",
        "none",
        "-no-reboot",
    ]
    words += ["-machine", machine, "-accel", "tcg,tb-size=64", "-cpu", cpu, "-smp", "1", "-m", "256"]
    words += ["-sandbox", SANDBOX, "-kernel", str(boot.kernel), "-initrd", str(boot.initrd)]
    words += ["-append", "rdinit=/init quiet panic=-1 mitigations=off"]
    words += ["-device", "virtio-serial-pci", "-chardev", "stdio,id=port,signal=off"]
    words += ["-device", "virtserialport,chardev=port,name=org.bough.import"]
    words += _render_disk("bough-agent", parts.agent_disk, None, writes=False)
    for number, volume in enumerate(volumes):
        words += _render_disk(f"volume{number}", disk, volume, writes=writes)
    return words


def _render_disk(serial: str, path: Path, volume: Volume | None, *, writes: bool) -> list[str]:
    node: dict[str, Any] = {"driver": "raw", "node-name": serial, "read-only": not writes}
    node["file"] = {"driver": "file", "filename": str(path), "read-only": not writes, "locking": "off"}
    if volume is not None:
        node |= {"offset": volume.offset_bytes, "size": volume.size_bytes}
    return ["-blockdev", json.dumps(node), "-device", f"virtio-blk-pci,drive={serial},serial={serial}"]


@dataclass(frozen=True)
class Mount:
    """How to mount a volume: its place among the guest's volumes, and a subvolume of btrfs; "": the top."""

    number: int
    kind: Kind
    subvolume: str | None = None


class DiskGuest:
    """The connection to the guest. Not for several tasks at once."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def wait_ready(self) -> None:
        await self._receive(_START_S)

    async def mount(
        self, number: int, kind: Kind, *, writes: bool, subvolume: str | None = None
    ) -> list[str]:
        """Mount a volume. Return the names of its subvolumes at the top.

        Raises:
            TreeUnreadable: the guest's kernel cannot mount the volume.
        """
        options = ["rw" if writes else _READING[kind]]
        if kind == Kind.BTRFS and subvolume is not None:
            options.append(f"subvol=/{subvolume}" if subvolume else "subvolid=5")
        answer = await self.call("mount", number, kind.value, ",".join(options))
        names = answer.get("subvolumes", [])
        return [name for name in names if isinstance(name, str) and _WORD.fullmatch(name)]

    async def unmount(self, number: int) -> None:
        await self.call("unmount", number)

    async def call(self, operation: str, *arguments: Any, root: str = "/") -> dict[str, Any]:
        """Send a request and return the answer.

        Raises:
            TreeUnreadable: the guest gave an error, an invalid answer, or none.
        """
        data = json.dumps({"do": operation, "arguments": arguments, "root": root}).encode()
        assert self._process.stdin is not None
        self._process.stdin.write(struct.pack(">I", len(data)) + data)
        answer = await self._receive(_ANSWER_S)
        if "error" in answer:
            raise TreeUnreadable(f"it {str(answer['error'])[:80]} in a throw-away guest")
        return answer

    async def _receive(self, quiet_s: float) -> dict[str, Any]:
        stream = self._process.stdout
        assert stream is not None
        watch = ProgressWatch(quiet_s, most_s=_MOST_S, work=Wrapped(self._process.pid))
        try:
            answer = json.loads(await watch.run(_read_frame(stream)))
        except Stalled as error:
            raise TreeUnreadable(f"the throw-away guest did not answer {error}") from None
        except asyncio.IncompleteReadError:
            raise TreeUnreadable("the throw-away guest has ended") from None
        except ValueError:
            raise TreeUnreadable("the throw-away guest's answer is broken") from None
        if not isinstance(answer, dict):
            raise TreeUnreadable("the throw-away guest's answer is broken")
        return answer


async def _read_frame(stream: asyncio.StreamReader) -> bytes:
    (length,) = struct.unpack(">I", await stream.readexactly(4))
    if length > _MOST_ANSWER:
        raise TreeUnreadable("the throw-away guest's answer is too long")
    return await stream.readexactly(length)


class GuestTree:
    """A mounted volume of the guest; a `Tree`."""

    def __init__(self, guest: DiskGuest, number: int) -> None:
        self._guest = guest
        self._root = f"/volumes/{number}"

    async def look(self, paths: Sequence[str]) -> dict[str, Entry]:
        answer = await self._call("look", [path for path in paths if is_usable(path)])
        return {path: entry for path in paths if (entry := _parse_entry(answer.get(path))) is not None}

    async def names(self, paths: Sequence[str]) -> dict[str, list[str]]:
        answer = await self._call("names", [path for path in paths if is_usable(f"{path}/.")])
        found = {path: answer[path] for path in paths if isinstance(answer.get(path), list)}
        return {
            path: sorted(name for name in names if isinstance(name, str) and _WORD.fullmatch(name))
            for path, names in found.items()
        }

    async def read(self, paths: Sequence[str], most_bytes: int) -> dict[str, bytes]:
        found = {}
        for path in paths:
            if is_usable(path):
                found[path] = await self._read(path, 0, most_bytes + 1)
        if sum(map(len, found.values())) > most_bytes + 4096:
            raise TreeUnreadable("its directories or files are larger than expected")
        return found

    async def copy(self, path: str, target: BinaryIO, most_bytes: int) -> None:
        done = 0
        while done < most_bytes and (data := await self._read(path, done, min(_PIECE, most_bytes - done))):
            done += len(data)
            await asyncio.to_thread(target.write, data)

    async def read_security_labels(self, paths: Sequence[str]) -> dict[str, str]:
        """Return the SELinux context of each file that has one."""
        answer = await self._call("labels", [path for path in paths if is_usable(path)])
        return {
            path: label
            for path in paths
            if isinstance(label := answer.get(path), str) and _LABEL.fullmatch(label)
        }

    async def write(self, change: dict[str, Any], label: str | None, time_s: int) -> None:
        """Create a file, link or directory; see inside/reader.py."""
        await self._call("write", change, label, time_s)

    async def _read(self, path: str, offset: int, length: int) -> bytes:
        answer = await self._call("read", path, offset, min(length, _PIECE))
        try:
            return base64.b64decode(answer["data"], validate=True)[:length]
        except (KeyError, TypeError, ValueError):
            raise TreeUnreadable("the throw-away guest's answer is broken") from None

    async def _call(self, operation: str, *arguments: Any) -> dict[str, Any]:
        return await self._guest.call(operation, *arguments, root=self._root)


def _parse_entry(told: Any) -> Entry | None:
    if not isinstance(told, list) or len(told) != 5:
        return None
    kind, mode, size, inode, target = told
    numbers = (mode, size, inode)
    if not isinstance(kind, str) or not all(isinstance(n, int) and 0 <= n < 1 << 63 for n in numbers):
        return None
    usable = isinstance(target, str) and is_usable(f"/{target}")
    return Entry(kind, mode & 0o7777, size, inode, target if usable else None)
