"""What the vCPUs of a guest that says nothing are doing, for whoever asks why."""

from __future__ import annotations

import asyncio
import contextlib
import re
from typing import Any

from bough.errors import BoughError
from bough.qemu.qmp import Qmp

_TIMEOUT_S = 2.0
_MOST = 16


async def read_vcpus(qmp: Qmp | None) -> list[str]:
    """Of each, where it is and whether it waits for an interrupt, as a PC's QEMU tells it; empty where it
    does not."""
    command: dict[str, Any] = {"command-line": "info registers -a"}
    with contextlib.suppress(BoughError, TimeoutError):
        async with asyncio.timeout(_TIMEOUT_S):
            told = str(await qmp.execute("human-monitor-command", **command)) if qmp is not None else ""
        return re.findall(r"^[RE]IP=[0-9a-f]+ [RE]FL=[0-9a-f]+ [^\n]{0,80}", told, re.MULTILINE)[:_MOST]
    return []
