"""Start Python again as this process was started, and start programs of the agent disk.

A program of the agent disk starts through the disk's loader, "ld.so": the guest may have another C library,
or none. The loader is then the program that the kernel runs. The agent must not load libraries of the guest,
such as those of name services.
"""

# pathlib costs an emulated guest 20 ms to load.
# ruff: noqa: PTH115, PTH118, PTH119, PTH120

from __future__ import annotations

import os
import sys

_LOADER = "ld.so"


def python_words() -> list[str]:
    """Return the words before the arguments of Python."""
    return [*_loader_words(), sys.executable or "/usr/bin/python3"]


def program_words(name: str) -> list[str]:
    """Return the words that start a program of the agent disk; none if the agent is not started from it."""
    root = disk_root()
    return [*_loader_words(), os.path.join(root, "bin", name)] if root else []


def disk_root() -> str:
    """Return the directory of the agent disk; "" if the agent is not started from it."""
    loader = _loader()
    return os.path.dirname(os.path.dirname(loader)) if loader else ""


def _loader_words() -> list[str]:
    loader = _loader()
    return [loader, "--inhibit-cache", "--library-path", os.path.dirname(loader)] if loader else []


def _loader() -> str:
    try:
        program = os.readlink("/proc/self/exe")
    except OSError:
        return ""
    return program if os.path.basename(program) == _LOADER else ""


_ROOT = disk_root()
#: The agent has its own C library.
PRIVATE = bool(_ROOT)
#: Directory of links to busybox, for what the guest lacks; "" without the agent disk, as the next one.
TOOLS = os.path.join(_ROOT, "tools") if PRIVATE else ""
BUSYBOX = os.path.join(_ROOT, "bin", "busybox") if PRIVATE else ""
