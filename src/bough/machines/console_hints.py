"""Lines that Linux prints on the console at a panic or halt. Any program of the guest can print such a line,
so a line is a hint only.
"""

from __future__ import annotations

import re

from bough.guest.facts import clean_name

#: kernel/panic.c prints the first two, kernel/reboot.c the third, on all architectures.
_PANIC = re.compile(rb"Kernel panic - not syncing: ([^\r\n]{0,200})")
_REBOOTS = re.compile(rb"Rebooting in (\d{1,6}) seconds")
_HALTED = re.compile(rb"reboot: System halted")
#: The end of the output so far: a line may come in pieces.
_KEPT_BYTES = 512
_MOST_S = 3600.0


class ConsoleHints:
    """Hints on a machine's console.

    Attributes:
        panic: the reason of a panic, as the kernel printed it.
        halted: the kernel printed that the system halted.
        reboots_in_s: delay of the reboot that the kernel announced after a panic; at most an hour.
        printed_bytes: number of bytes read so far.
    """

    def __init__(self) -> None:
        self.panic: str | None = None
        self.halted = False
        self.reboots_in_s: float | None = None
        self.printed_bytes = 0
        self._end = b""

    @property
    def is_there(self) -> bool:
        return self.halted or self.panic is not None

    def forget(self) -> None:
        self.panic, self.halted, self.reboots_in_s, self._end = None, False, None, b""

    def read(self, data: bytes) -> None:
        """Take the next bytes of the console."""
        self.printed_bytes += len(data)
        text = self._end + data
        if match := _PANIC.search(text):
            words = match[1].decode("utf-8", "replace").replace("]---", "")
            self.panic = clean_name(words).strip() or self.panic or "no reason was printed"
        if match := _REBOOTS.search(text):
            self.reboots_in_s = min(_MOST_S, float(match[1]))
        self.halted = self.halted or _HALTED.search(text) is not None
        self._end = text[-_KEPT_BYTES:]
