"""A service that is killed while it asks QEMU: the QEMU without a machine ends by itself."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from bough.qemu.binary import find_qemu
from tests.waiting import wait_until

#: Ask, and be killed as soon as QEMU has started.
ASK = """
import asyncio, os, signal, sys
from bough.qemu.binary import QemuBinary
from bough.qemu import questions
start = questions.start_subprocess
async def start_and_be_killed(*argv, **options):
    await start(*argv, **options)
    os.kill(os.getpid(), signal.SIGKILL)
questions.start_subprocess = start_and_be_killed
asyncio.run(questions.ask(QemuBinary(sys.argv[1], (7, 2), "x86_64"), "tcg", "query-version"))
"""


def running(program: Path) -> list[str]:
    """Return the processes with this program on their command line."""
    found = []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = process.read_bytes()
        except OSError:
            continue  # it has just ended
        if str(program).encode() in words and b"-machine" in words:
            found.append(process.parent.name)
    return found


def test_no_qemu_is_left(tmp_path: Path) -> None:
    program = tmp_path / "qemu-of-a-killed-service"
    program.symlink_to(find_qemu("x86_64").path)
    done = subprocess.run([sys.executable, "-c", ASK, str(program)], stdout=subprocess.DEVNULL, check=False)
    assert done.returncode == -signal.SIGKILL
    wait_until(lambda: not running(program), timeout_s=30, what="QEMU has ended")
