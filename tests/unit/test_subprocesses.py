"""The end of a program, whatever the program, its pipes and its children are doing."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from bough.qemu.subprocesses import end_subprocess, start_subprocess
from tests.waiting import wait_until


async def start(script: str) -> asyncio.subprocess.Process:
    return await start_subprocess("sh", "-c", script, stdout=asyncio.subprocess.PIPE, limit=1024)


def is_there(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize(
    "script",
    [
        "exec cat /dev/zero",
        "cat /dev/zero & wait",
        "trap '' TERM INT HUP; while :; do sleep 60; done",
        "kill -STOP $$",
        "exit 3",
    ],
)
async def test_ended_while_nobody_reads(script: str) -> None:
    process = await start(script)
    await asyncio.sleep(0.1)
    async with asyncio.timeout(10):
        await end_subprocess(process)
    assert process.returncode is not None
    wait_until(lambda: not is_there(process.pid), what="its group is gone")


async def test_cancelled_while_it_is_started() -> None:
    for turns in range(30):
        task = asyncio.create_task(start("exec cat /dev/zero"))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        async with asyncio.timeout(10):
            await asyncio.gather(task, return_exceptions=True)
        if not task.cancelled():
            await end_subprocess(task.result())


async def test_ended_while_another_has_its_pipe() -> None:
    process = await start("sleep 60 & setsid sleep 60 & echo $!; wait")
    assert process.stdout is not None
    other = int(await process.stdout.readline())
    try:
        async with asyncio.timeout(10):
            await end_subprocess(process)
    finally:
        os.kill(other, signal.SIGKILL)
