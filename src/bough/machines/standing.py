"""Who goes first: a fork that only settles leaves the host's processors to what somebody waits for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from bough.qemu.process import QemuProcess

#: One that stands back is forward for so long, and longer while it is talked to.
_FORWARD_S = 0.3


class Standing:
    """Of one process of QEMU, and nobody's when that has ended."""

    def __init__(self, process: QemuProcess, is_talked_to: Callable[[], bool]) -> None:
        self._process = process
        self._is_talked_to = is_talked_to
        self._back = False
        self._step: asyncio.TimerHandle | None = None

    def stand_back(self, back: bool) -> None:
        """Until told not to; but for as long as somebody has something to say to its agent."""
        self._back = back
        if self._process.is_alive():
            self._process.stand_back(back)

    def step_forward(self) -> None:
        """Somebody has."""
        if self._back and self._process.is_alive():
            self._process.stand_back(False)
            self._step_back_later()

    def _step_back_later(self) -> None:
        if self._step is not None:
            self._step.cancel()
        self._step = asyncio.get_running_loop().call_later(_FORWARD_S, self._step_back)

    def _step_back(self) -> None:
        if self._back and self._is_talked_to():
            self._step_back_later()
        elif self._back:
            self.stand_back(True)
