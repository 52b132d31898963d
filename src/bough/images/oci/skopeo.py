"""skopeo, which speaks to registries: with the user's auth files, mirrors and policy for signatures.

skopeo runs as the user, outside a jail: it reads the user's files and the network. It writes only to the
directories given here, and ends with the service.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from bough.errors import BadImage, DownloadFailed, HostLacks
from bough.images.oci.config import ARCHITECTURES, MOST_BYTES
from bough.images.oci.troubles import shorten, translate
from bough.progress_watch import ProgressWatch, Sign, Stalled
from bough.qemu.pid import Pid
from bough.qemu.subprocesses import end_subprocess, start_subprocess
from bough.spec.container_name import ContainerName

STALL_S = 60.0
#: Consecutive attempts without a new byte.
_MOST_ATTEMPTS = 4
_MOST_STDERR = 64 * 1024
_MESSAGE = re.compile(r'level=fatal msg="((?:[^"\\]|\\.)*)"')
_NEVER_S = float("inf")
#: Name of the image inside the layout that a copy writes.
IMAGE = "image"


class Interrupted(Exception):
    """The transfer broke off, and another attempt may succeed."""


def find_skopeo() -> str:
    """Return the path of skopeo.

    Raises:
        HostLacks: skopeo is not installed.
    """
    path = shutil.which("skopeo")
    if path is None:
        raise HostLacks(
            "this host lacks skopeo, needed for container images",
            hint="sudo apt install skopeo (on other distributions: bough doctor)",
        )
    return path


class Skopeo:
    """Reads one image from a registry, a layout or an archive.

    Args:
        arch: architecture of the machine; an archive with several images has one for each.
        scratch: a directory for temporary files.
    """

    def __init__(self, name: ContainerName, arch: str, scratch: Path, *, stall_s: float = STALL_S) -> None:
        self._name = name
        self._program = find_skopeo()
        self._goarch = next(goarch for goarch, known in ARCHITECTURES.items() if known == arch)
        self._scratch = scratch
        self._stall_s = stall_s

    async def read_manifest(self, digest: str = "") -> bytes:
        """Return the text of the manifest or the index, not checked.

        Args:
            digest: of one manifest of the repository; "": what the name leads to.

        Raises:
            NotFound, DownloadFailed, BadImage
        """
        return await self._inspect(self._argument(digest), "--raw")

    async def read_config(self, digest: str = "") -> bytes:
        """Return the text of the configuration, not checked."""
        return await self._inspect(self._argument(digest), "--raw", "--config")

    async def copy(self, layout: Path, received: Sign, *, digest: str = "") -> None:
        """Copy the image to an OCI layout, with the name "image".

        skopeo checks the policy of this host and the digest of each blob. Blobs that the layout has already
        are not copied again, so another call resumes a broken one.

        Args:
            received: the bytes in the layout so far. The time-out follows this number.

        Raises:
            NotFound, DownloadFailed, BadImage, NoSpace
        """
        source = self._argument(digest)
        words = ["copy", *self._tls("--src-tls-verify=false"), "--dest-oci-accept-uncompressed-layers"]
        best, failures = received(), 0
        while True:
            try:
                await self._run([*words, source, f"oci:{layout}:{IMAGE}"], (received,))
                return
            except Interrupted as error:
                failures = 0 if received() != best else failures + 1
                best = received()
                if failures >= _MOST_ATTEMPTS:
                    raise self._failed(str(error)) from error
                await asyncio.sleep(min(2.0**failures / 4, 4.0))

    async def push(self, layout: Path) -> None:
        """Copy the only image of a layout to the registry. Blobs that the registry has are not sent again.

        Raises:
            DownloadFailed: the registry refuses the push, or cannot be reached. NotFound
        """
        words = ["copy", *self._tls("--dest-tls-verify=false"), "--preserve-digests", f"oci:{layout}"]
        for attempt in range(_MOST_ATTEMPTS):
            try:
                await self._run([*words, self._name.argument])
                return
            except Interrupted as error:
                if attempt == _MOST_ATTEMPTS - 1:
                    raise _of_push(self._failed(str(error))) from error
                await asyncio.sleep(2.0**attempt / 4)
            except DownloadFailed as error:
                raise _of_push(error) from error

    def _argument(self, digest: str) -> str:
        return self._name.at(digest) if digest and not self._name.is_local else self._name.argument

    def _tls(self, option: str) -> list[str]:
        """Allow plain HTTP for a registry on this host, as Docker does."""
        return [option] if self._name.is_on_loopback else []

    async def _inspect(self, source: str, *options: str) -> bytes:
        """Return a small text. A second attempt follows an interrupted first one."""
        words = ["inspect", *self._tls("--tls-verify=false"), *options, source]
        with contextlib.suppress(Interrupted):
            return await self._run(words)
        try:
            return await self._run(words)
        except Interrupted as error:
            raise self._failed(str(error)) from error

    async def _run(self, words: Sequence[str], signs: Sequence[Sign] = ()) -> bytes:
        """Run skopeo and return its output.

        Raises:
            Interrupted: another attempt may help.
        """
        process = await start_subprocess(
            *("setpriv", "--pdeathsig", "KILL", self._program),
            *("--override-os", "linux", "--override-arch", self._goarch, "--tmpdir", str(self._scratch)),
            *words,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        signs = (*signs, _watch_traffic(process.pid))
        watch = ProgressWatch(self._stall_s, signs=signs, work=Pid.of(process.pid), most_s=_NEVER_S)
        try:
            text, told = await watch.run(_outputs(process))
            status = await process.wait()
        except Stalled:
            raise Interrupted(f"nothing came for {self._stall_s:.0f} s") from None
        finally:
            await end_subprocess(process)
        if len(text) > MOST_BYTES:
            raise BadImage(f"{self._name} sent more than {MOST_BYTES} bytes as a manifest or configuration")
        if status != 0:
            raise self._error(told, status)
        return text

    def _error(self, told: str, status: int) -> Exception:
        found = _MESSAGE.findall(told)
        message = unescape(found[-1]) if found else told.strip()[-300:] or f"skopeo ended with {status}"
        return translate(message, self._name) or Interrupted(message)

    def _failed(self, why: str) -> DownloadFailed:
        return DownloadFailed(
            f"{self._name} could not be pulled: {shorten(why)}",
            hint="run the same command again to resume",
            url=str(self._name),
        )


def _of_push(error: DownloadFailed) -> DownloadFailed:
    """Return the error of a pull in the words of a push."""
    message = error.message.replace(" pulled:", " pushed:", 1)
    return DownloadFailed(message, hint=error.hint, **error.details)


def _watch_traffic(pid: int) -> Sign:
    """Return the numbers of bytes that a process has read and written, sockets included."""
    path = Path(f"/proc/{pid}/io")

    def read() -> bytes:
        try:
            return path.read_bytes()
        except OSError:
            return b""

    return read


def unescape(text: str) -> str:
    """Undo the escapes of a message in skopeo's log, and put the message on one line."""
    plain = re.sub(r"\\(.)", lambda match: {"n": " ", "t": " "}.get(match[1], match[1]), text)
    return " ".join("".join(c if c.isprintable() else " " for c in plain).split())


async def _outputs(process: asyncio.subprocess.Process) -> tuple[bytes, str]:
    """Return the standard output, bounded, and the end of the errors."""
    text, told = await asyncio.gather(
        _bounded(process.stdout, MOST_BYTES + 1, from_end=False),
        _bounded(process.stderr, _MOST_STDERR, from_end=True),
    )
    return text, told.decode(errors="replace")


async def _bounded(stream: asyncio.StreamReader | None, most: int, *, from_end: bool) -> bytes:
    kept = b""
    while stream is not None and (data := await stream.read(64 * 1024)):
        kept = (kept + data)[-most:] if from_end else (kept + data)[:most]
    return kept


def watch_bytes(root: Path) -> Callable[[], int]:
    """Return a count of the bytes in a layout, with the blobs in transfer."""

    def count() -> int:
        total = 0
        for path in (*root.glob("oci-put-blob*"), *root.glob("blobs/sha256/*")):
            with contextlib.suppress(OSError):
                total += path.stat().st_size
        return total

    return count
