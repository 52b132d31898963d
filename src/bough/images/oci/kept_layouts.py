"""OCI layouts below downloads/: what a broken pull has received, so that the next pull resumes.

    downloads/container-<digits of the manifest's digest>/   as skopeo writes it: index.json, blobs/...

A blob has its name when it is complete. Unpacking checks its digest again: a power loss may have damaged it.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import time
from collections.abc import AsyncIterator
from pathlib import Path

from bough.errors import BadImage
from bough.paths import make_directory
from bough.progress import Progress, Report
from bough.tasks import finish

KEPT_S = 7 * 86400.0
_PREFIX = "container-"
#: skopeo's names of blobs in transfer.
_UNFINISHED = "oci-put-blob*"


class KeptLayouts:
    """The layouts of one home."""

    def __init__(self, downloads: Path) -> None:
        self._downloads = downloads
        self._locks: dict[str, asyncio.Lock] = {}

    @contextlib.asynccontextmanager
    async def hold(self, digest: str, name: str, report: Report) -> AsyncIterator[Path]:
        """Yield the directory of a layout; one pull of the same manifest at a time.

        The directory is removed at the end of the block, and also after BadImage: its blobs are not as the
        image says. After another error or a cancellation the complete blobs stay.
        """
        lock = self._locks.setdefault(digest, asyncio.Lock())
        if lock.locked():
            report(Progress(f"waiting for another pull of {name}"))
        async with lock:
            make_directory(self._downloads, 0o711)
            self.sweep()
            layout = self._downloads / _name_of(digest)
            layout.mkdir(mode=0o700, exist_ok=True)
            async with _kept_after_failure(layout):
                yield layout

    def sweep(self, *, older_than_s: float = KEPT_S) -> None:
        """Remove the layouts that no pull has used within `older_than_s`, except for running pulls."""
        held = {_name_of(digest) for digest, lock in self._locks.items() if lock.locked()}
        for path in self._downloads.glob(f"{_PREFIX}*") if self._downloads.is_dir() else ():
            with contextlib.suppress(OSError):
                if path.name not in held and time.time() - path.stat().st_mtime >= older_than_s:
                    shutil.rmtree(path)


def _name_of(digest: str) -> str:
    return f"{_PREFIX}{digest.partition(':')[2]}"


@contextlib.asynccontextmanager
async def _kept_after_failure(layout: Path) -> AsyncIterator[None]:
    try:
        _remove_unfinished(layout)
        yield
    except BadImage:
        await finish(asyncio.to_thread(shutil.rmtree, layout, True))
        raise
    except BaseException:
        await finish(asyncio.to_thread(_remove_unfinished, layout))
        if not any(layout.glob("blobs/sha256/*")):
            await finish(asyncio.to_thread(shutil.rmtree, layout, True))
        raise
    else:
        await finish(asyncio.to_thread(shutil.rmtree, layout, True))


def _remove_unfinished(layout: Path) -> None:
    for path in layout.glob(_UNFINISHED):
        path.unlink(missing_ok=True)
