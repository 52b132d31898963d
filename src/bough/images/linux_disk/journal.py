"""Replay the journal of an ext3 or ext4 file system, as the kernel does at a mount.

e2fsck 1.47 replays no journal at an offset in a file: it opens the file a second time, and then forgets the
offset. So e2fsck works on a copy of the volume, and the disk changes only after e2fsck has succeeded.
"""

from __future__ import annotations

import asyncio
import functools
import os
import secrets
from collections.abc import Callable
from pathlib import Path

from bough.images.confined import Confinement, find_program, run_confined
from bough.images.linux_disk.ext import read_ext_state
from bough.images.linux_disk.tree import TreeUnreadable
from bough.images.linux_disk.volumes import Volume
from bough.tasks import run_stoppable
from bough.units import MIB

_MOST_S = 600.0


async def replay_journal(
    disk: Path, volume: Volume, time_s: int, confinement: Confinement, work: Path
) -> None:
    """Replay the journal. Damage is not repaired.

    Args:
        time_s: the time that e2fsck writes to the superblock, in seconds since 1970.
        work: a directory that the jail's user may enter, on the file system of the disk.

    Raises:
        TreeUnreadable: the journal is damaged. The disk is unchanged.
        HostLacks: e2fsck is not installed.
    """
    copy = work / f"volume-{secrets.token_hex(4)}"
    try:
        await run_stoppable(
            functools.partial(copy_volume, disk, volume.offset_bytes, copy, 0, volume.size_bytes)
        )
        await _run_e2fsck(copy, time_s, confinement)
        with copy.open("rb") as stream:
            state = read_ext_state(stream, 0)
        if state is None or state.needs_replay:
            raise TreeUnreadable("its journal is damaged")
        await run_stoppable(
            functools.partial(copy_volume, copy, 0, disk, volume.offset_bytes, volume.size_bytes)
        )
    finally:
        copy.unlink(missing_ok=True)


async def _run_e2fsck(copy: Path, time_s: int, confinement: Confinement) -> None:
    argv = [find_program("env"), f"E2FSCK_TIME={max(1, time_s)}", find_program("e2fsck")]
    confinement.give(copy)
    try:
        async with asyncio.timeout(_MOST_S):
            done = await run_confined(
                confinement, [*argv, "-p", "-E", "journal_only", str(copy)], writable=(copy,)
            )
    except TimeoutError:
        raise TreeUnreadable("its journal could not be replayed in time") from None
    finally:
        confinement.take_back(copy)
    if done.status != 0:  # 1: e2fsck has also repaired something, perhaps by dropping changes
        raise TreeUnreadable("its journal is damaged")


def copy_volume(
    source: Path, source_at: int, target: Path, target_at: int, size_bytes: int, check: Callable[[], None]
) -> None:
    """Copy a part of a file to a place in another file. Holes and equal parts are not written. Blocking.

    Args:
        check: called regularly; an exception from `check` ends the copy.
    """
    reading = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        writing = os.open(target, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            if os.fstat(writing).st_size < target_at + size_bytes:
                os.ftruncate(writing, target_at + size_bytes)
            _copy_data(reading, source_at, writing, target_at, size_bytes, check)
        finally:
            os.close(writing)
    finally:
        os.close(reading)


def _copy_data(
    reading: int, source_at: int, writing: int, target_at: int, size: int, check: Callable[[], None]
) -> None:
    place, end = source_at, source_at + size
    while place < end:
        try:
            place = max(place, os.lseek(reading, place, os.SEEK_DATA))
        except OSError:  # ENXIO: only a hole follows
            return
        stop = min(end, os.lseek(reading, place, os.SEEK_HOLE)) if place < end else end
        while place < stop:
            check()
            data = os.pread(reading, min(MIB, stop - place), place)
            if not data:
                return
            there = target_at + place - source_at
            if os.pread(writing, len(data), there) != data:
                os.pwrite(writing, data, there)
            place += len(data)
