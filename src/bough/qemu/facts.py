"""Facts about this host, cached in $BOUGH_HOME/host.json until something changes.

A fact's key names all influences on the fact: the host's boot, a program's file, a device. A new key means a
new measurement.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Awaitable, Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from bough.paths import Home
from bough.qemu.pid import read_boot_id
from bough.storage import write_json


def _seconds_since_boot() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


async def cached_fact(
    home: Home,
    name: str,
    files: list[str],
    find: Callable[[], Awaitable[Any]],
    *,
    refresh: bool = False,
    lasts_s: Callable[[Any], float | None] = lambda _: None,
    clock: Callable[[], float] = _seconds_since_boot,
) -> Any:
    """Return the JSON-able result of `find`, from the cache if nothing has changed.

    Args:
        files: programs and devices that the fact depends on, also their appearance and removal.
        refresh: ignore the cache.
        lasts_s: how long a result is valid; None: until something changes.
    """
    key = [read_boot_id(), os.geteuid(), *(_identify(file) for file in files)]
    known = _read(home).get(name)
    now_s = clock()
    if not refresh and isinstance(known, dict) and known.get("key") == key and _lasts(known, now_s):
        return known["value"]
    value = await find()
    lasts = lasts_s(value)
    until_s = None if lasts is None else now_s + lasts
    # Read again: another fact may have been added meanwhile.
    write_json(home.host_facts, {**_read(home), name: {"key": key, "value": value, "until_s": until_s}})
    return value


def _lasts(known: dict[str, Any], now_s: float) -> bool:
    until_s = known.get("until_s")
    return until_s is None or (isinstance(until_s, int | float) and now_s < until_s)


def _identify(file: str) -> list[Any]:
    try:
        info = Path(file).stat()
    except OSError as error:
        return [file, error.errno]
    return [file, info.st_mtime_ns, info.st_size, info.st_mode, info.st_uid, info.st_gid]


def _read(home: Home) -> dict[str, Any]:
    try:
        return _parse(home.host_facts.read_bytes())
    except FileNotFoundError:
        return {}


@lru_cache(maxsize=2)
def _parse(content: bytes) -> dict[str, Any]:
    """Parse the cache; kept in memory, because a start of a machine asks for several facts."""
    try:
        data = json.loads(content)
    except ValueError:
        return {}
    return data if isinstance(data, dict) else {}
