"""A process that is killed while it is traced: the tracing thread must not wait for ever."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from bough.errors import MachineFailed
from bough.forks.process_image import trace as trace_module
from bough.forks.process_image.trace import _INTERRUPT, _SEIZE, _ptrace, stopped

pytestmark = pytest.mark.skipif(os.uname().machine != "x86_64", reason="tracing exists on x86_64 alone")

THREADS = """
import threading, time
for _ in range(4):
    threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
print(flush=True)
time.sleep(600)
"""


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", THREADS], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill the process. `Popen.kill` in the tracing thread would take a stopped process for an ended one."""
    os.kill(process.pid, signal.SIGKILL)


def in_thread(work: threading.Thread) -> None:
    """Run a thread: its end releases what it traces. A thread that hangs is a failed test, not a hung one."""
    work.start()
    work.join(30)
    assert not work.is_alive(), "the tracer waits for a killed process"


def test_killed_in_the_middle_of_a_call(process: subprocess.Popen[bytes]) -> None:
    raised: list[BaseException] = []

    def trace() -> None:
        try:
            with stopped(process.pid) as held:
                end(process)
                held.signal_actions()
        except (MachineFailed, OSError) as error:
            raised.append(error)

    in_thread(threading.Thread(target=trace, daemon=True))
    assert len(raised) == 1
    assert process.wait(10) < 0


@pytest.mark.parametrize("request_number", [_SEIZE, _INTERRUPT])
def test_killed_while_it_is_being_stopped(
    process: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch, request_number: int
) -> None:
    raised: list[BaseException] = []

    def ask(request: int, number: int, address: int = 0, data: int = 0) -> None:
        _ptrace(request, number, address, data)
        if request == request_number:
            end(process)
            time.sleep(0.05)

    def trace() -> None:
        try:
            with stopped(process.pid):
                pass
        except (MachineFailed, OSError) as error:
            raised.append(error)

    monkeypatch.setattr(trace_module, "_ptrace", ask)
    in_thread(threading.Thread(target=trace, daemon=True))
    assert len(raised) == 1
    assert process.wait(10) < 0
