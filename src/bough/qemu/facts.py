"""What was found out about this host, kept in $BOUGH_HOME/host.json until something changes.

A fact has a key: whatever it depends on (the host's boot, a program's file, a device). With another key
it is found out again.
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
    """The JSON-able result of `find`, from the cache when nothing it depends on has changed.

    Args:
        files: programs and devices that it depends on; that they appear or vanish counts as well.
        refresh: find out again all the same.
        lasts_s: for how long a result counts; None: until something changes.
    """
    key = [read_boot_id(), os.geteuid(), *(_identify(file) for file in files)]
    known = _read(home).get(name)
    now_s = clock()
    if not refresh and isinstance(known, dict) and known.get("key") == key and _lasts(known, now_s):
        return known["value"]
    value = await find()
    lasts = lasts_s(value)
    until_s = None if lasts is None else now_s + lasts
    # Read again: another fact may have been found meanwhile.
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
    """A start of a machine asks for several facts, one after the other."""
    try:
        data = json.loads(content)
    except ValueError:
        return {}
    return data if isinstance(data, dict) else {}
