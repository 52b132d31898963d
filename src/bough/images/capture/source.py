"""A live host over the user's own ssh connection: a look at it, the user's commands, its files by rsync."""

from __future__ import annotations

import asyncio
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from bough.errors import DownloadFailed, InvalidInput
from bough.images.capture.facts import HostFacts, parse_facts
from bough.qemu.subprocesses import end_subprocess, start_subprocess
from bough.spec.ssh_address import SshAddress

_LOOK = Path(__file__).parent / "inside" / "look.sh"
_MOST_OUTPUT = 4 * 1024 * 1024
_LOOK_S = 120.0
_AS_ROOT = 'if [ "$(id -u)" = 0 ]; then exec {command}; else exec sudo -n {command}; fi'
#: Options that rsync in the capture machine may have the host's rsync use. The machine has read hostile files
#: of the host, and is not trusted to name a command.
_FLAGS = re.compile(r"-[A-Za-z]*(e[A-Za-z0-9.]*)?")
_FORBIDDEN_FLAGS = frozenset("sM")
_OPTIONS = re.compile(
    r"--(server|sender|numeric-ids|partial|bwlimit=[0-9]{1,9}|no-inc-recursive|delete-during)"
)


class SourceHost:
    """A host whose connection the client keeps open.

    Args:
        control: the socket of the client's ssh (ControlPath).
    """

    def __init__(self, address: SshAddress, control: Path) -> None:
        self.address = address
        self._control = control

    async def look(self) -> HostFacts:
        """Return what the host tells about itself. Reads nothing but its tables.

        Raises:
            DownloadFailed: the connection broke. InvalidInput: the user may not become root there. BadImage:
                the answer is malformed.
        """
        script = _LOOK.read_bytes()
        status, output, error = await self._run(_AS_ROOT.format(command="sh -s"), script, _LOOK_S)
        if status and "sudo:" in error:
            raise InvalidInput(
                f"the user of {self.address} may not become root without a password: {error[-300:]}",
                hint="log in as root, or allow it there: USER ALL=(root) NOPASSWD: ALL in /etc/sudoers.d",
            )
        if status == 255:
            raise self.broken(error)
        return parse_facts(output.decode(errors="replace"))

    async def run_hook(self, command: str, timeout_s: float) -> None:
        """Run a command of the user's as root.

        Raises:
            InvalidInput: the command failed. Carries its output. DownloadFailed: the connection broke.
        """
        words = f"sh -c {shlex.quote(command)}"
        status, output, error = await self._run(_AS_ROOT.format(command=words), b"", timeout_s)
        if status == 255:
            raise self.broken(error)
        if status:
            raise InvalidInput(
                f"the command {command[:100]!r} failed on {self.address} with status {status}",
                output=(output.decode(errors="replace") + error)[-2000:],
            )

    async def start_rsync(self, words: Sequence[str], path: str) -> asyncio.subprocess.Process:
        """Start the host's rsync, which reads `path`. End the process by `end_subprocess`.

        Args:
            words: the command as rsync in the capture machine asked for it.

        Raises:
            InvalidInput: rsync asked for something else than to read `path`.
        """
        command = " ".join(map(shlex.quote, check_words(words, path)))
        # The host works for others, too: its rsync goes last.
        command = f"nice -n 19 {command}"
        return await start_subprocess(
            *self._argv(_AS_ROOT.format(command=command)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )

    def broken(self, error: str = "") -> DownloadFailed:
        """Return the error for a connection that ended."""
        last = error.strip().rpartition("\n")[2][:300]
        because = f": {last}" if last else ""
        return DownloadFailed(
            f"the connection to {self.address} broke{because}",
            hint="the same command continues where this one ended",
            url=str(self.address),
        )

    def _argv(self, command: str) -> list[str]:
        fixed = ("-o", "BatchMode=yes", "-o", "ControlMaster=no", "-T")
        return ["ssh", "-S", str(self._control), *fixed, *self.address.options, command]

    async def _run(self, command: str, input_: bytes, timeout_s: float) -> tuple[int, bytes, str]:
        process = await start_subprocess(
            *self._argv(command),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(timeout_s):
                output, error = await _communicate(process, input_)
                await process.wait()
        except TimeoutError:
            raise DownloadFailed(
                f"{self.address} did not answer within {timeout_s:.0f} s", url=str(self.address)
            ) from None
        finally:
            await end_subprocess(process)
        return process.returncode or 0, output, error.decode(errors="replace")[:4000]


def check_words(words: Sequence[str], path: str) -> list[str]:
    """Return the command, if it is rsync that sends `path` and does no more.

    Raises:
        InvalidInput: it is not.
    """
    if list(words[:3]) == ["rsync", "--server", "--sender"] and list(words[-2:]) == [".", path]:
        options = words[3:-2]
        flags = [word for word in options if not word.startswith("--")]
        fit = all(_OPTIONS.fullmatch(word) for word in options if word.startswith("--"))
        fit = fit and all(
            _FLAGS.fullmatch(word) and not _FORBIDDEN_FLAGS & set(_plain(word)) for word in flags
        )
        if fit:
            return list(words)
    raise InvalidInput(f"rsync in the capture machine asked for another command: {' '.join(words)[:200]!r}")


def _plain(word: str) -> str:
    """Return the flags before "e", after which rsync lists what its protocol can do."""
    return word[1:].partition("e")[0]


async def _communicate(process: asyncio.subprocess.Process, input_: bytes) -> tuple[bytes, bytes]:
    """Write the input, and return the first MiBs of both outputs."""
    assert process.stdin is not None

    async def read(stream: asyncio.StreamReader | None) -> bytes:
        data = bytearray()
        while stream is not None and (piece := await stream.read(65536)):
            data += piece[: _MOST_OUTPUT - len(data)]
        return bytes(data)

    async def write(stream: asyncio.StreamWriter) -> None:
        try:
            stream.write(input_)
            await stream.drain()
        except (BrokenPipeError, ConnectionResetError):
            return
        finally:
            stream.close()

    output, error, _ = await asyncio.gather(read(process.stdout), read(process.stderr), write(process.stdin))
    return output, error
