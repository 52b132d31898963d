"""Freeze and thaw file systems.

A child holds the file systems frozen. The child thaws on request, at the timeout, or when the agent dies, so
a guest never stays frozen.
"""

# pathlib and contextlib cost an emulated guest 20 ms each to load.
# ruff: noqa: PTH123

from __future__ import annotations

import fcntl
import os
import select

from bough.guest import agent_calls, wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from bough.guest.agent_calls import Agent, Arguments

_FIFREEZE = 0xC0045877
_FITHAW = 0xC0045878
_DEFAULT_S = 10.0
_LONGEST_S = 120.0


def freeze(arguments: Arguments, say: Callable[[dict[str, object]], None], hold: int) -> None:
    """Freeze all file systems. {"timeout_s": time until they thaw without a call} -> {"frozen": mount
    points}.
    """
    asked = arguments.get("timeout_s")
    timeout_s = min(float(asked), _LONGEST_S) if isinstance(asked, (int, float)) else _DEFAULT_S
    # Open all before freezing any. Last mounted first: a file system may lie on another one.
    places = [(path, os.open(path, os.O_RDONLY)) for path in reversed(_mount_points())]
    frozen: list[tuple[str, int]] = []
    try:
        for path, fd in places:
            try:
                fcntl.ioctl(fd, _FIFREEZE, 0)
                frozen.append((path, fd))
            except OSError as error:
                # EBUSY: frozen by another process; other errors: cannot be frozen
                if error.errno not in (16, 95, 25):
                    raise
        say({"frozen": [path for path, _ in frozen]})
        select.select([hold], [], [], timeout_s)
    finally:
        for _, fd in reversed(frozen):
            fcntl.ioctl(fd, _FITHAW, 0)


def thaw(agent: Agent, call: int, _arguments: Arguments) -> dict[str, object] | None:
    """Thaw, and answer when all is thawed. -> {"held": whether all was frozen until now}."""
    worker = agent_calls.worker_of("freeze")
    if worker is None:
        return {"held": False}
    nonce = agent.nonce

    def thawed() -> None:
        if agent.nonce == nonce:
            agent.send_values(wire.RESULT, call, {"held": True})

    worker.on_end.append(thawed)
    worker.release()
    return None


def _mount_points() -> list[str]:
    """Return the mount points of writable file systems on block devices, each once, in mount order."""
    places: dict[str, str] = {}
    with open("/proc/self/mountinfo", "rb", buffering=0) as file:
        lines = file.read(1 << 20).decode("utf-8", "surrogateescape").splitlines()
    for line in lines:
        fields, _, rest = line.partition(" - ")
        parts = fields.split(" ")
        kind, source, options = [*rest.split(" "), "", ""][:3]  # a source may be empty
        if source.startswith("/dev/") and kind != "devtmpfs" and "ro" not in options.split(","):
            places.setdefault(parts[2], _unescape(parts[4]))
    return list(places.values())


def _unescape(text: str) -> str:
    for code, char in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, char)
    return text
