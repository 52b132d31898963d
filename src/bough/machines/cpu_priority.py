"""Priority of processor time: a fork that only settles leaves the host's processors to requests of users."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from bough.qemu.process import QemuProcess

#: Time for which a fork with low priority gets the normal share after a request; longer while commands run.
_FORWARD_S = 0.3


class CpuPriority:
    """The priority of one QEMU process. No effect after the process has ended."""

    def __init__(self, process: QemuProcess, is_talked_to: Callable[[], bool]) -> None:
        self._process = process
        self._is_talked_to = is_talked_to
        self._back = False
        self._step: asyncio.TimerHandle | None = None

    def stand_back(self, back: bool) -> None:
        """Lower the priority, or restore it. A low priority is suspended while a user talks to the agent."""
        self._back = back
        if self._process.is_alive():
            self._process.stand_back(back)

    def step_forward(self) -> None:
        """Suspend a low priority: a user is about to talk to the agent."""
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
