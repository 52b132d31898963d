"""The agent's files in an image.

Put the files at the given paths, owned by root; `ENABLED_AS` is a symbolic link to `UNIT_PATH`. Compile the
modules with the guest's own Python (`compile_command`), or the first start compiles them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bough.guest.agent import AGENT_VERSION

__all__ = ["AGENT_VERSION", "COMPILE_COMMAND", "ENABLED_AS", "UNIT_PATH", "GuestFile", "agent_files"]

_HERE = Path(__file__).parent
LIBRARY = "/usr/lib/bough"
UNIT_PATH = "/usr/lib/systemd/system/bough-agent.service"
ENABLED_AS = "/etc/systemd/system/sysinit.target.wants/bough-agent.service"
# Run this inside the guest's root when the files are in place.
COMPILE_COMMAND = ["python3", "-I", "-S", "-m", "compileall", "-q", LIBRARY]


@dataclass(frozen=True)
class GuestFile:
    """A file to create in a guest, owned by root.

    Attributes:
        mode: permissions, such as 0o644.
    """

    path: str
    content: bytes
    mode: int = 0o644


def agent_files() -> list[GuestFile]:
    """Return the agent's modules and systemd unit."""
    package = f"{LIBRARY}/bough"
    modules = sorted(path for path in _HERE.glob("agent*.py"))
    files = [GuestFile(f"{package}/__init__.py", b""), GuestFile(f"{package}/guest/__init__.py", b"")]
    files += [
        GuestFile(f"{package}/guest/{path.name}", path.read_bytes()) for path in [*modules, _HERE / "wire.py"]
    ]
    return [*files, GuestFile(UNIT_PATH, (_HERE / "bough-agent.service").read_bytes())]
