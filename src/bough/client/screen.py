"""The screen, keyboard and serial console of a machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from bough.client.guest import RunningGuest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bough.client.websocket import WebSocket

_KEYS_TIMEOUT_S = 600.0


class VisibleGuest(RunningGuest):
    """The screen, keyboard, console and logs of a machine."""

    def logs(self, source: Literal["console", "qemu"] = "console", *, tail_bytes: int = 64 * 1024) -> str:
        """Return the end of the console, or of QEMU's standard error. Unfiltered guest output: unsafe for a
        terminal.
        """
        from bough.contract.machines import GetLogs

        request = GetLogs(reference=self._reference, source=source, tail=tail_bytes)
        return str(self._api.send(request))

    def screenshot(self) -> bytes:
        """Return the screen as PNG. Raises WrongState if the machine has no screen."""
        from bough.contract.screen import GetScreenshot

        return bytes(self._api.send(GetScreenshot(reference=self._reference)))

    def screen_text(self) -> str:
        """Return the text of a PC's screen in text mode. Raises InvalidInput if the screen shows graphics."""
        from bough.contract.screen import GetScreenText

        return str(self._api.send(GetScreenText(reference=self._reference)))

    def type(self, text: str = "", *, keys: Sequence[str] = ()) -> None:
        """Type `text` on the (US) keyboard, then press `keys`: "enter", "ctrl-alt-delete"."""
        from bough.contract.screen import PressKeys

        request = PressKeys(reference=self._reference, text=text, keys=keys)
        self._api.send(request, timeout=_KEYS_TIMEOUT_S)

    def send_key(self, key: str) -> None:
        """Press one key, or several at once: "enter", "ctrl-alt-delete"."""
        self.type(keys=[key])

    def send_chars(self, text: str) -> None:
        """Type `text` on the (US) keyboard. A newline is the Enter key."""
        self.type(text)

    def console(self, *, backlog: bool = False) -> WebSocket:
        """Connect to the serial console. With `backlog`, the end of earlier output comes first.

        `receive` returns the guest's output, and `send` types. Other clients may be connected, too.
        """
        from bough.contract.screen import AttachConsole

        return self._api.open(AttachConsole(reference=self._reference, backlog=backlog))
