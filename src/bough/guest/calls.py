"""Pending answers from the agent."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from bough.errors import BoughError, ProtocolError
from bough.guest import wire
from bough.guest.facts import clean_name
from bough.progress import Progress, Report

MAX_RESULT = 1024 * 1024
_MAX_PROGRESS = 10_000


class Call:
    """A call: the answer, in parts, and the progress meanwhile.

    Attributes:
        abandoned: the caller does not wait any more.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, report: Report) -> None:
        self.answer: asyncio.Future[dict[str, Any]] = loop.create_future()
        self.abandoned = False
        self._report = report
        self._parts = bytearray()
        self._progress_count = 0

    def part(self, payload: memoryview, *, more: bool) -> bool:
        """Add a part of the result. Return whether the part was the last."""
        if len(self._parts) + len(payload) > MAX_RESULT or (more and not payload):
            raise ProtocolError("a result that is too long")
        self._parts += payload
        if more:
            return False
        values = wire.decode_map(bytes(self._parts))
        if not self.answer.done():
            self.answer.set_result(values)
        return True

    def progress(self, values: Mapping[str, object]) -> None:
        self._progress_count += 1
        if self._progress_count > _MAX_PROGRESS:
            raise ProtocolError("endless progress")
        if self.abandoned:
            return
        fraction = values.get("fraction")
        known = isinstance(fraction, float) and 0 <= fraction <= 1
        step, detail = clean_name(values.get("step")), clean_name(values.get("detail"))
        self._report(
            Progress(step, float(fraction) if known and isinstance(fraction, float) else None, detail)
        )

    def fail(self, error: BoughError) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)
            self.answer.exception()  # perhaps no caller waits any more
