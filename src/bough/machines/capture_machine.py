"""The machine that makes a copy of a live host: its second disk becomes the image.

rsync in this machine talks to rsync on the captured host. bough carries the streams between the agent's
tunnel and the user's ssh connection. So the machine needs no network, and no program on this host reads the
captured files.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from pathlib import Path

from bough.errors import BuildFailed, GuestRefused
from bough.guest.channel import AgentChannel
from bough.guest.facts import clean_text
from bough.guest.session import ExecRequest, Tunnel
from bough.images.capture.facts import HostFacts, Mount
from bough.images.capture.plan import CapturePlan, is_below
from bough.images.capture.source import SourceHost
from bough.images.disk import (
    BIOS_BOOT_LBA,
    ROOT_OFFSET,
    ROOT_PARTITION,
    SECTOR,
    DiskIdentity,
    render_partition_table,
)
from bough.images.moves import TARGET_SERIAL
from bough.machines.machine import Machine
from bough.progress import Progress, Report
from bough.qemu.subprocesses import end_subprocess
from bough.tasks import end_tasks, finish
from bough.units import format_size

_INSIDE = Path(__file__).parents[1] / "images" / "capture" / "inside"
_NEW = "/run/bough-capture/new"
_RELAY = "/run/bough-capture/relay.py"
_PORT = 8731
_PIECE = 256 * 1024
_MOST_COMMAND = 64 * 1024
_DIAL_AGAIN_S = 0.1
_DIAL_S = 120.0
_LINK_END_S = 10.0
_SCRIPT_S = 3600.0
#: rsync(1), EXIT VALUES: files vanished before they were read; some could not be read.
_VANISHED, _PARTIAL = 24, 23
_DONE = re.compile(r"^\s*([0-9,]+)\s+[0-9]+%")
#: Features of ext4 that kernels before 4.4 lack, and programs of their time.
_OLD_FEATURES = "^metadata_csum,^64bit,^metadata_csum_seed,^orphan_file"
_NEW_FEATURES = "^metadata_csum_seed,^orphan_file"
_QUIET_WORDS = re.compile(
    r"^(BOOT_IMAGE|root|rootflags|rootfstype|resume|console|initrd|crashkernel|ip|cryptdevice)=|^(ro|rw|quiet|splash)$|^rd\."
)


class CaptureMachine:
    """A started machine with an empty second disk, or with the disk of an earlier attempt."""

    def __init__(
        self, machine: Machine, source: SourceHost, facts: HostFacts, plan: CapturePlan, report: Report
    ) -> None:
        self._machine = machine
        self._source = source
        self._facts = facts
        self._plan = plan
        self._report = report
        self._copied_bytes = 0
        #: Sentences for the user about the copy.
        self.notes: list[str] = []

    async def prepare(self, identity: DiskIdentity, own: DiskIdentity) -> None:
        """Lay out the second disk and mount its root. An earlier copy stays.

        Args:
            identity: of the copy's disk. own: of the machine's own disk.

        Raises:
            BuildFailed
        """
        table = render_partition_table(identity, self._plan.arch, self._plan.disk_bytes).rstrip("\n")
        major = self._facts.kernel.partition(".")[0]
        old = major.isdigit() and int(major) < 5
        await self._run(
            "prepare.sh",
            "preparing the disk",
            disk_serial=TARGET_SERIAL,
            root_uuid=str(identity.root_filesystem),
            own_uuid=str(own.root_filesystem),
            table=table,
            head_sectors=str(ROOT_OFFSET // SECTOR),
            first_sector=str(BIOS_BOOT_LBA),
            root_number=str(ROOT_PARTITION),
            features=_OLD_FEATURES if old else _NEW_FEATURES,
        )
        channel = await self._channel()
        await _write_file(channel, _RELAY, (_INSIDE / "relay.py").read_bytes())

    async def copy(self, bandwidth: int | None) -> None:
        """Copy all file systems. What is there already is not copied again.

        Raises:
            DownloadFailed: the connection broke. BuildFailed: rsync failed. The copy so far stays.
        """
        self._copied_bytes = 0
        for mount in self._plan.copied:
            await self._copy_one(mount, bandwidth)

    async def finish(self, *, quiet: bool, scrub: bool) -> list[str]:
        """Make the copy bootable and quiet.

        Return the firmware for which the copy has its own boot loader; nothing: the copy has bough's.
        """
        parameters = [word for word in self._facts.cmdline.split() if not _QUIET_WORDS.search(word)]
        said = await self._run(
            "finish.sh",
            "making the copy bootable",
            running_kernel=self._facts.kernel,
            parameters=" ".join(
                word for word in parameters if re.fullmatch(r"[A-Za-z0-9_.,:=/@+-]{1,200}", word)
            ),
            quiet="yes" if quiet else "no",
            scrub="yes" if scrub else "no",
        )
        return self._read_marks(said)

    def _read_marks(self, said: str) -> list[str]:
        marks: dict[str, list[str]] = {}
        for line in said.splitlines():
            key, _, value = line.partition(" ")
            if key.startswith("@"):
                marks.setdefault(key[1:], []).append(clean_text(value, 200))
        if marks.get("quiet"):
            held = ", ".join(dict.fromkeys(marks["quiet"]))
            self.notes.append(f"held back until `bough-speak` in the machine: {held[:1000]}")
        if marks.get("scrubbed"):
            self.notes += [f"removed: {path}" for path in marks["scrubbed"][:1000]]
        if marks.get("failed"):
            self.notes.append(f"{', '.join(marks['failed'])} failed: the copy may lack drivers at boot")
        return marks.get("firmware", [])

    # -- one file system ------------------------------------------------------------------------

    async def _copy_one(self, mount: Mount, bandwidth: int | None) -> None:
        channel = await self._channel()
        session = await channel.exec(ExecRequest(self._render_rsync(mount, bandwidth), stdin=False))
        linking = asyncio.create_task(self._link(channel, mount), name=f"capture {mount.point}")
        heard, error = bytearray(), bytearray()
        try:
            async for stream, data in session:
                if stream == "stdout":
                    self._tell(mount, heard, data)
                else:
                    error += data[: 64 * 1024 - len(error)]
            await asyncio.wait({linking}, timeout=_LINK_END_S)
            if linking.done() and (broken := linking.exception()) is not None:
                raise broken
        finally:
            await finish(session.abort())
            await end_tasks(linking)
        self._check_status(mount, session.exit.code, clean_text(error.decode(errors="replace"), 4000))
        self._copied_bytes += self._facts.used.get(mount.point, 0)

    def _render_rsync(self, mount: Mount, bandwidth: int | None) -> list[str]:
        point = mount.point.rstrip("/")
        # A file system mounted below has a turn of its own. rsync deletes nothing that is excluded.
        nested = [
            one.point for one in self._plan.copied if one is not mount and is_below(one.point, mount.point)
        ]
        patterns = [*self._plan.excluded, *(f"{place}/*" for place in nested)]
        kept = [text for text in (_relative(pattern, point) for pattern in patterns) if text is not None]
        flags = "-aHS" + "".join(
            flag for flag, name in (("A", "ACLs"), ("X", "xattrs")) if name not in self._facts.lacks
        )
        limit = [] if bandwidth is None else [f"--bwlimit={max(1, bandwidth // 1024)}"]
        return [
            # --old-args: bough quotes the path for the host's shell, so rsync must not.
            *(
                "rsync",
                flags,
                "-x",
                "--old-args",
                "--numeric-ids",
                "--delete",
                "--partial",
                "--info=progress2",
            ),
            *(f"--exclude={pattern}" for pattern in kept),
            *limit,
            *("-e", f"python3 {_RELAY} {_PORT}", f"host:{point}/", f"{_NEW}{point}/"),
        ]

    def _tell(self, mount: Mount, heard: bytearray, data: bytes) -> None:
        heard += data
        *lines, rest = re.split(rb"[\r\n]", bytes(heard[-8192:]))
        heard[:] = rest
        for line in lines[-1:]:
            if found := _DONE.match(line.decode(errors="replace")):
                done = self._copied_bytes + int(found[1].replace(",", ""))
                share = min(done / self._plan.used_bytes, 1.0) if self._plan.used_bytes else None
                self._report(Progress(f"copying {mount.point}", share, format_size(done)))

    def _check_status(self, mount: Mount, code: int | None, error: str) -> None:
        first = error.strip().partition("\n")[0][:300]
        if code == _VANISHED:
            self.notes.append(f"files below {mount.point} disappeared while they were copied")
        elif code == _PARTIAL:
            count = sum(line.startswith("rsync:") for line in error.splitlines())
            self.notes.append(f"{max(count, 1)} files below {mount.point} could not be copied whole: {first}")
        elif code != 0:
            raise BuildFailed(
                f"the copy of {mount.point} failed: rsync ended with {code}: {first}",
                hint="the same command continues where this one ended",
                output=error[-2000:],
            )

    async def _link(self, channel: AgentChannel, mount: Mount) -> None:
        """Carry the streams between rsync in the machine and rsync on the host."""
        tunnel = await _dial(channel)
        path = f"{mount.point.rstrip('/')}/"
        try:
            words, rest = await _read_command(tunnel)
            process = await self._source.start_rsync(words, path)
            try:
                await _carry(tunnel, process, rest)
                if process.returncode == 255:
                    assert process.stderr is not None
                    raise self._source.broken((await process.stderr.read(4096)).decode(errors="replace"))
            finally:
                await end_subprocess(process)
        finally:
            await tunnel.close()

    # -- the guest -------------------------------------------------------------------------------

    async def _channel(self) -> AgentChannel:
        channel = await self._machine.agent()
        if not isinstance(channel, AgentChannel):
            raise BuildFailed("the capture machine has no agent of bough")
        return channel

    async def _run(self, name: str, step: str, **variables: str) -> str:
        """Run a script in the guest with variables. Return its output. Raises BuildFailed."""
        self._report(Progress(step))
        script = (_INSIDE / name).read_text()
        channel = await self._channel()
        request = ExecRequest(["/bin/sh", "-c", f"exec 2>&1\n{script}"], env=variables, stdin=False)
        session = await channel.exec(request)
        said = bytearray()

        async def listen() -> None:
            async for _, data in session:
                said.extend(data[: 1024 * 1024 - len(said)])

        try:
            await channel.patience(_SCRIPT_S).run(listen())
        finally:
            await finish(session.abort())
        text = clean_text(said.decode(errors="replace"), 1024 * 1024)
        if session.exit.code != 0:
            last = text.strip().rpartition("\n")[2][:300]
            raise BuildFailed(f"the image could not be made ({step}): {last}", step=step, output=text[-4000:])
        return text


def _relative(pattern: str, point: str) -> str | None:
    """Return an anchored pattern as of the mount point; None: it does not concern that file system.

    rsync anchors "/..." at the root of the transfer, which is the mount point.
    """
    if not pattern.startswith("/") or not point:
        return pattern
    return pattern[len(point) :] if pattern.startswith(f"{point}/") else None


async def _write_file(channel: AgentChannel, path: str, content: bytes) -> None:
    session = await channel.exec(ExecRequest(["/bin/sh", "-c", 'cat > "$0"', path]))
    await session.write(content)
    await session.close_stdin()
    async for _ in session:
        pass
    if session.exit.code != 0:
        raise BuildFailed(f"{path} could not be written in the capture machine")


async def _dial(channel: AgentChannel) -> Tunnel:
    """Connect to the relay, which rsync starts after it has read its own options."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_DIAL_S):
            while True:
                try:
                    return await channel.dial(_PORT, "127.0.0.1")
                except GuestRefused as error:
                    if error.details.get("errno") != "ECONNREFUSED":
                        raise
                await asyncio.sleep(_DIAL_AGAIN_S)
    raise BuildFailed("rsync in the capture machine did not begin")


async def _read_command(tunnel: Tunnel) -> tuple[list[str], bytes]:
    """Return the command that rsync asks for, and the first bytes for it."""
    heard = b""
    while b"\n" not in heard:
        piece = await tunnel.read()
        heard += piece
        if not piece or len(heard) > _MOST_COMMAND:
            raise BuildFailed("rsync in the capture machine asked for no command")
    line, _, rest = heard.partition(b"\n")
    try:
        words = json.loads(line)
    except ValueError:
        words = None
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise BuildFailed("rsync in the capture machine asked for no command")
    return words[1:], rest  # the first word is the host's name


async def _carry(tunnel: Tunnel, process: asyncio.subprocess.Process, first: bytes) -> None:
    """Carry both directions until the host's rsync ends."""
    stdin, stdout = process.stdin, process.stdout
    assert stdin is not None
    assert stdout is not None

    async def inwards() -> None:
        data = first
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            while True:
                if data:
                    stdin.write(data)
                    await stdin.drain()
                if not (data := await tunnel.read()):
                    break
        stdin.close()

    async def outwards() -> None:
        with contextlib.suppress(BrokenPipeError):
            while data := await stdout.read(_PIECE):
                await tunnel.write(data)
        await tunnel.write_eof()

    reading = asyncio.create_task(inwards(), name="capture: requests")
    try:
        await outwards()
        await process.wait()
    finally:
        await end_tasks(reading)
