"""Whether the host is short of memory. Then nothing is kept for later forks."""

from __future__ import annotations

from pathlib import Path

#: Smallest share of the host's memory that must be available.
_LEAST_AVAILABLE = 0.1


def is_memory_short() -> bool:
    """Return whether the host is short of memory, by the kernel's own estimate (proc(5), MemAvailable)."""
    found = {}
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name in ("MemTotal", "MemAvailable"):
            found[name] = int(value.split()[0])
    return found["MemAvailable"] < _LEAST_AVAILABLE * found["MemTotal"]
