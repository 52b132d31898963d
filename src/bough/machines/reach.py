"""A machine that runs and cannot be reached. The machine keeps running, and the service tries again.

A QEMU may hang for a while: the host has no memory left, a file system does not answer, SIGSTOP. Or the names
of the sockets may be gone for good. Neither is a reason to end a machine.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Protocol

from bough.errors import BoughError, QmpLost

#: How long the QEMU of an adopted machine may take until its QMP greeting.
ADOPT_TIMEOUT_S = 10.0
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 30.0


class Host(Protocol):
    """The parts of a machine that a Reach uses."""

    @property
    def name(self) -> str: ...
    @property
    def pid(self) -> int | None: ...
    def own(self, work: Coroutine[Any, Any, None], what: str) -> asyncio.Task[None]: ...
    def tell(self, kind: str, detail: str = "") -> None: ...


class Reach:
    """The service's connection to one machine.

    Args:
        join: connects to the machine's sockets and takes control. Raises BoughError, OSError.

    Attributes:
        trouble: why the machine cannot be reached; None if the machine can be reached or does not run.
    """

    def __init__(self, machine: Host, join: Callable[[], Awaitable[None]]) -> None:
        self._machine = machine
        self._join = join
        self._trying: asyncio.Task[None] | None = None
        self.trouble: str | None = None

    def lose(self, error: Exception) -> None:
        """Try again from time to time after `join` has failed."""
        self.trouble = _words(error)
        self._machine.tell("unreachable", self.trouble)
        self._trying = self._machine.own(self._try_again(), "reach again")

    def end(self) -> None:
        """End the attempts: the machine's QEMU has ended."""
        self.trouble = None
        if self._trying is not None:
            self._trying.cancel()
            self._trying = None

    def check(self) -> None:
        """Raise QmpLost if the machine cannot be reached."""
        if self.trouble is not None:
            raise QmpLost(
                f"machine '{self._machine.name}' runs (pid {self._machine.pid}) and cannot be reached: "
                f"{self.trouble}",
                hint="bough tries again by itself; to power the machine off: "
                f"bough stop {self._machine.name} --force",
                machine=self._machine.name,
            )

    async def _try_again(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while True:
            await asyncio.sleep(pause_s)
            try:
                await self._join()
            except (BoughError, OSError) as error:
                self.trouble = _words(error)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            else:
                self.trouble = self._trying = None
                self._machine.tell("reached")
                return


def _words(error: Exception) -> str:
    return error.message if isinstance(error, BoughError) else str(error)
