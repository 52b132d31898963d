"""Wait for a condition. Tests do not wait for a fixed time."""

from __future__ import annotations

import time
from collections.abc import Callable


def wait_until(
    holds: Callable[[], bool], *, timeout_s: float = 60, what: str = "it holds", every_s: float = 0.05
) -> None:
    """Wait until the condition holds. Fails after `timeout_s` with "waited in vain until" and `what`."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(every_s)
