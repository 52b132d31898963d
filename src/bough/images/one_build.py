"""One build of the same thing at a time, among all processes of the host."""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from bough.progress import Progress, Report


@asynccontextmanager
async def only_one(lock: Path, label: str, report: Report) -> AsyncIterator[None]:
    """Hold the lock of a build. The lock is on a file, because another process may build the same thing."""
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        waiting = False
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not waiting:
                    report(Progress(f"waiting for another build of {label}"))
                waiting = True
                await asyncio.sleep(0.1)
        yield
    finally:
        os.close(descriptor)
