"""Events of the kernel for bough's init: the power button, new devices, processors and memory."""

# pathlib and contextlib cost an emulated guest 20 ms each to load.
# ruff: noqa: PTH123, PTH208

from __future__ import annotations

import _socket
import os
from struct import Struct

from bough.guest.agent_python import BUSYBOX

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_NETLINK_KOBJECT_UEVENT = 15
#: struct input_event (linux/input.h): two longs of time, type, code, value.
_EVENT = Struct("llHHi")
_EV_KEY, _KEY_POWER, _KEY_SLEEP = 1, 116, 142
_BUTTON_NAMES = ("Power Button", "gpio-keys")
_MOST_EVENTS = 64


class KernelEvents:
    """The descriptors of the events. A guest without some of them has no such events."""

    def __init__(self) -> None:
        self._uevents: _socket.socket | None = None
        self._buttons: dict[str, int] = {}
        try:
            kind = _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC | _socket.SOCK_NONBLOCK
            self._uevents = _socket.socket(_socket.AF_NETLINK, kind, _NETLINK_KOBJECT_UEVENT)
            self._uevents.bind((0, 1))
        except OSError:
            self._uevents = None
        self._find_buttons()

    def sources(self, end: Callable[[str], None]) -> dict[int, Callable[[], None]]:
        """Return descriptor -> what to call when it can be read.

        Args:
            end: called with "poweroff" when the power button was pressed.
        """
        found: dict[int, Callable[[], None]] = {
            fd: lambda name=name, fd=fd: self._read_button(name, fd, end)  # type: ignore[misc]
            for name, fd in self._buttons.items()
        }
        if self._uevents is not None:
            found[self._uevents.fileno()] = self._read_uevents
        return found

    def _find_buttons(self) -> None:
        """Open the power buttons: input devices of that name."""
        place = "/sys/class/input"
        for name in os.listdir(place) if os.path.isdir(place) else ():  # noqa: PTH112
            if name.startswith("event") and name not in self._buttons:
                title = _read(f"{place}/{name}/device/name").strip()
                if title in _BUTTON_NAMES:
                    try:
                        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
                        self._buttons[name] = os.open(f"/dev/input/{name}", flags)
                    except OSError:
                        pass  # the device is not there yet: an event follows

    def _read_button(self, name: str, fd: int, end: Callable[[str], None]) -> None:
        try:
            data = os.read(fd, _EVENT.size * _MOST_EVENTS)
        except BlockingIOError:
            return
        except OSError:
            os.close(self._buttons.pop(name))  # unplugged
            return
        for _, _, kind, code, value in _EVENT.iter_unpack(data[: len(data) // _EVENT.size * _EVENT.size]):
            if kind == _EV_KEY and code == _KEY_POWER and value == 1:
                end("poweroff")

    def _read_uevents(self) -> None:
        assert self._uevents is not None
        for _ in range(_MOST_EVENTS):
            try:
                self._heard(self._uevents.recv(8192))
            except BlockingIOError:
                return
            except OSError:
                return  # more events than fit: some are lost

    def _heard(self, message: bytes) -> None:
        values = parse_uevent(message)
        if values.get("ACTION") != "add":
            return
        alias, path = values.get("MODALIAS"), "/sys" + values.get("DEVPATH", "")
        if values.get("SUBSYSTEM") == "input":
            self._find_buttons()
        elif values.get("SUBSYSTEM") in ("cpu", "memory"):
            _set_online(path)
        elif alias and BUSYBOX and "DRIVER" not in values:
            os.posix_spawn(BUSYBOX, ["modprobe", "-q", "-b", alias], os.environ)


def parse_uevent(message: bytes) -> dict[str, str]:
    """Return the values of a kernel's event: "add@/devices/..." and KEY=value, with zero bytes between."""
    pairs = (part.decode("utf-8", "replace").partition("=") for part in message.split(b"\0")[1:])
    return {key: value for key, equals, value in pairs if equals}


def _set_online(path: str) -> None:
    try:
        with open(f"{path}/online", "r+b", buffering=0) as file:
            if file.read(8).strip() == b"0":
                file.write(b"1")
    except OSError:
        pass  # no such processor any more, or the kernel refuses


def _read(path: str) -> str:
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read(256).decode("utf-8", "replace")
    except OSError:
        return ""
