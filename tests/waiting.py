"""Waiting for a condition, as a test does instead of waiting for a time."""

from __future__ import annotations

import time
from collections.abc import Callable


def wait_until(
    holds: Callable[[], bool], *, timeout_s: float = 60, what: str = "it holds", every_s: float = 0.05
) -> None:
    """Fails after `timeout_s` with `what`, which follows on "waited in vain until"."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(every_s)
