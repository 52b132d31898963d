"""The agent's files in an image.

Put the files at the given paths, owned by root; `ENABLED_AS` is a symbolic link to `UNIT_PATH`. Compile the
modules with the guest's own Python (`compile_command`), or the first start compiles them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

_HERE = Path(__file__).parent
LIBRARY = "/usr/lib/bough"
UNIT_PATH = "/usr/lib/systemd/system/bough-agent.service"
ENABLED_AS = "/etc/systemd/system/sysinit.target.wants/bough-agent.service"
#: The guest's program that starts the agent from the agent disk, and the directory for the disk in the
#: guest's root. Whoever installs the starter makes the directory, for guests with a read-only root.
STARTER_PATH = f"{LIBRARY}/start"
DISK_PLACE = "/.bough"
#: The serial number by which the starter finds the agent disk.
DISK_SERIAL = "bough-agent"
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


@dataclass(frozen=True)
class GuestLink:
    """A symbolic link to create in a guest, owned by root."""

    path: str
    target: str


def agent_modules() -> dict[str, bytes]:
    """Return the content of the agent's modules, by the path below a directory of sys.path."""
    modules = [*sorted(_HERE.glob("agent*.py")), _HERE / "wire.py"]
    packages = {"bough/__init__.py": b"", "bough/guest/__init__.py": b""}
    return packages | {f"bough/guest/{path.name}": path.read_bytes() for path in modules}


def agent_files() -> list[GuestFile]:
    """Return the agent's modules and systemd unit."""
    files = [GuestFile(f"{LIBRARY}/{name}", content) for name, content in agent_modules().items()]
    return [*files, GuestFile(UNIT_PATH, (_HERE / "bough-agent.service").read_bytes())]


def starter_file() -> GuestFile:
    """Return the program of a guest that starts the agent from the agent disk."""
    return GuestFile(STARTER_PATH, (_HERE / "starter.sh").read_bytes(), 0o755)
