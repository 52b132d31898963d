"""Download a file over http(s), with resumption, limits and progress reports.

downloads/<key>.part     the bytes received so far; <key> is a hash of the address
downloads/<key>.json     the version of the file (ETag or Last-Modified). The next attempt or command resumes
                         only if the server still has this version (RFC 9110, If-Range)

The server is not trusted: it may send too much, or another file in the next attempt.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import json
import os
import ssl
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from bough.errors import Conflict, DownloadFailed
from bough.images.convert import check_space
from bough.progress import Progress, Report
from bough.storage import no_space_is_told, write_json
from bough.units import format_size

if TYPE_CHECKING:
    import httpx

STALL_S = 60.0
MOST_REDIRECTS = 5
#: Consecutive attempts without a new byte.
MOST_ATTEMPTS = 4
KEPT_S = 7 * 86400.0
_LEAST_RATE_BYTES = 1024
_RETRIED_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})


@dataclass(frozen=True)
class Version:
    """The version of a file on the server. Equal versions mean the same file."""

    etag: str | None = None
    modified: str | None = None

    @property
    def validator(self) -> str | None:
        """The value for If-Range: no weak ETag (RFC 9110, 13.1.5)."""
        return self.etag or self.modified

    @classmethod
    def of(cls, headers: httpx.Headers) -> Version:
        etag = headers.get("etag")
        strong = etag if etag and not etag.startswith("W/") and len(etag) < 500 else None
        return cls(strong, headers.get("last-modified"))


class _Interrupted(Exception):
    """The transfer broke off, and another attempt may succeed."""


@contextlib.asynccontextmanager
async def download(
    url: str, downloads: Path, *, most_bytes: int, report: Report, stall_s: float = STALL_S
) -> AsyncIterator[Path]:
    """Yield the path of the downloaded file, which is deleted at the end of the block.

    After an interruption the received part stays if the server allows resumption.

    Raises:
        DownloadFailed: the message says what the server did.
        Conflict: another download of the same address is running.
        NoSpace
    """
    check_url(url)
    downloads.mkdir(mode=0o711, exist_ok=True)
    sweep(downloads)
    key = hashlib.sha256(url.encode()).hexdigest()[:32]
    part, notes = downloads / f"{key}.part", downloads / f"{key}.json"
    descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Conflict(
                f"{url} is already being downloaded", hint="wait until the other download ends"
            ) from None
        transfer = _Transfer(url, descriptor, notes, most_bytes, stall_s, report)
        try:
            with no_space_is_told("the download", downloads):
                await transfer.run()
        except BaseException:
            if transfer.version.validator is None or not os.fstat(descriptor).st_size:
                _remove(part, notes)  # resumption is impossible
            raise
        try:
            yield part
        finally:
            _remove(part, notes)
    finally:
        os.close(descriptor)


def is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        return False


def check_url(url: str) -> None:
    if not is_address(url):
        raise DownloadFailed(f"{url[:200]!r} is not an http or https address", url=url[:200])


def sweep(downloads: Path, *, older_than_s: float = KEPT_S) -> None:
    """Remove parts that were not resumed within `older_than_s`, except for running downloads."""
    for path in downloads.glob("*.part") if downloads.is_dir() else ():
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime < older_than_s:
                continue
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(path, path.with_suffix(".json"))
            finally:
                os.close(descriptor)


def _remove(*paths: Path) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


class _Transfer:
    def __init__(
        self, url: str, descriptor: int, notes: Path, most_bytes: int, stall_s: float, report: Report
    ) -> None:
        self.url = url
        self.version = Version()
        self._file = descriptor
        self._notes = notes
        self._most_bytes = most_bytes
        self._stall_s = stall_s
        self._report = report
        self._total: int | None = None
        self._step = f"downloading {_shown(url)}"
        #: True after this call's first response: a different version is then a change during the download.
        self._seen = False

    @property
    def _have(self) -> int:
        return os.fstat(self._file).st_size

    async def run(self) -> None:
        import httpx

        self._recall()
        timeout = httpx.Timeout(self._stall_s, connect=min(30.0, self._stall_s))
        best, failures = self._have, 0
        self._report(Progress(self._step, None, "connecting"))
        async with httpx.AsyncClient(
            verify=ssl.create_default_context(), timeout=timeout, follow_redirects=False
        ) as client:
            while True:
                try:
                    return await self._attempt(client)
                except httpx.InvalidURL as error:
                    raise self._failed(f"is not a valid address: {error}") from error
                except (_Interrupted, httpx.TransportError) as error:
                    failures = 0 if self._have > best else failures + 1
                    best = max(best, self._have)
                    why = str(error) or type(error).__name__
                    if failures >= MOST_ATTEMPTS:
                        came = f" after {format_size(self._have)}" if self._have else ""
                        of = f" of {format_size(self._total)}" if self._total and came else ""
                        raise self._failed(
                            f"could not be downloaded{came}{of}: {why[:300]}",
                            hint="run the same command again to resume the download" if came else None,
                        ) from error
                    self._report(Progress(self._step, self._fraction(), f"trying again: {why[:100]}"))
                    await asyncio.sleep(min(2.0**failures / 4, 4.0))

    async def _attempt(self, client: httpx.AsyncClient) -> None:
        have = self._have
        headers = {"Accept-Encoding": "identity", "User-Agent": "bough"}
        if have and self.version.validator:
            headers |= {"Range": f"bytes={have}-", "If-Range": self.version.validator}
        elif have:
            self._restart()
        url = self.url
        for _ in range(MOST_REDIRECTS + 1):
            async with client.stream("GET", url, headers=headers) as response:
                if response.status_code not in (301, 302, 303, 307, 308):
                    return await self._take(response)
                url = self._redirected(url, response)
        raise self._failed(f"redirects more than {MOST_REDIRECTS} times", hint=f"the last was {_shown(url)}")

    def _redirected(self, url: str, response: httpx.Response) -> str:
        location = response.headers.get("location")
        if not location:
            raise self._failed("redirects without an address")
        target = str(response.url.join(location))
        check_url(target)
        if urlsplit(url).scheme == "https" and urlsplit(target).scheme == "http":
            raise self._failed(f"redirects from https to http: {_shown(target)}")
        return target

    async def _take(self, response: httpx.Response) -> None:
        status = response.status_code
        have = self._have
        version = Version.of(response.headers)
        if status in _RETRIED_STATUS:
            raise _Interrupted(f"the server answered {status}")
        if status == 416 and have:
            self._restart()
            raise _Interrupted("the server has less than was downloaded")
        if status not in (200, 206):
            raise self._failed(
                f"cannot be downloaded: the server answered {status} {response.reason_phrase[:60]}"
            )
        if status == 206:
            self._check_range(response.headers.get("content-range", ""), have)
            if version.validator != self.version.validator:
                raise self._changed(version)
        else:
            if self._seen and have and version != self.version:
                raise self._changed(version)
            self._restart()
            have = 0
        encoding = response.headers.get("content-encoding", "identity")
        if encoding != "identity":
            raise self._failed(f"is sent encoded as {encoding[:40]}, which was not asked for")
        self._remember(version, _length(response.headers, have))
        await self._receive(response)

    def _check_range(self, told: str, have: int) -> None:
        unit, _, rest = told.partition(" ")
        span, _, total = rest.partition("/")
        first = span.partition("-")[0]
        if unit != "bytes" or not first.isdecimal() or int(first) != have:
            raise self._failed(f"was requested from byte {have} on, but the server sent {told[:60]!r}")
        if self._total is not None and total.isdecimal() and int(total) != self._total:
            raise self._changed(None)

    async def _receive(self, response: httpx.Response) -> None:
        window, window_bytes, told = time.monotonic(), 0, 0.0
        async for data in response.aiter_raw():
            have = self._have
            if have + len(data) > self._most_bytes:
                raise self._failed(
                    f"is larger than the limit of {format_size(self._most_bytes)}",
                    hint="raise the limit with --max-size",
                )
            os.pwrite(self._file, data, have)
            now = time.monotonic()
            window_bytes += len(data)
            if now - told > 0.2:
                told = now
                check_space(self._notes.parent)
                self._report(Progress(self._step, self._fraction(), self._detail()))
            if now - window > self._stall_s:
                if window_bytes < _LEAST_RATE_BYTES:
                    raise _Interrupted(f"{window_bytes} bytes came in {self._stall_s:.0f} s")
                window, window_bytes = now, 0
        have = self._have
        if self._total is not None and have != self._total:
            raise _Interrupted(f"the server sent {have} of {self._total} bytes")

    def _fraction(self) -> float | None:
        return min(1.0, self._have / self._total) if self._total else None

    def _detail(self) -> str:
        of = f" of {format_size(self._total)}" if self._total else ""
        return f"{format_size(self._have)}{of}"

    def _restart(self) -> None:
        os.ftruncate(self._file, 0)
        self._notes.unlink(missing_ok=True)
        self._total = None

    def _remember(self, version: Version, total: int | None) -> None:
        if total is not None:
            if total > self._most_bytes:
                raise self._failed(
                    f"has {format_size(total) if total < 1 << 60 else total}, more than the limit of "
                    f"{format_size(self._most_bytes)}",
                    hint="raise the limit with --max-size",
                )
            check_space(self._notes.parent, total - self._have)
        self.version, self._total, self._seen = version, total, True
        if version.validator is not None:
            kept = {"url": self.url, "etag": version.etag, "modified": version.modified, "total": total}
            write_json(self._notes, kept)

    def _recall(self) -> None:
        """Load the notes of an earlier call. If the notes are missing or damaged, the download
        starts again.
        """
        try:
            kept: dict[str, Any] = json.loads(self._notes.read_bytes())
            if kept["url"] != self.url:
                raise ValueError
            self.version, self._total = Version(kept["etag"], kept["modified"]), kept["total"]
        except (OSError, ValueError, KeyError, TypeError):
            self._restart()

    def _changed(self, version: Version | None) -> DownloadFailed:
        self._restart()
        now = f" (it was {self.version.validator}, it is {version.validator})" if version else ""
        self.version = Version()
        return self._failed(
            f"was changed on the server while it was being downloaded{now}", hint="run the command again"
        )

    def _failed(self, what: str, hint: str | None = None) -> DownloadFailed:
        return DownloadFailed(f"{_shown(self.url)} {what}", hint=hint, url=self.url)


def _length(headers: httpx.Headers, have: int) -> int | None:
    text = headers.get("content-length", "")
    return have + int(text) if text.isdecimal() and len(text) < 20 else None


def _shown(url: str) -> str:
    """Return the address without user, password and query: these may contain secrets."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{host}{port}{parts.path}"[:200]
