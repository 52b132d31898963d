"""Load commands of a guest at the same addresses each time, for a QEMU that translates by address.

Before 8.0, QEMU translates a program and the C library again for each load address, and so for each process.
That doubles the time and costs 75 MiB of memory for 50 runs of `true` (docs/decisions/0010).
"""

from __future__ import annotations

#: The first QEMU that translates a program once for all processes.
FIXED = (8, 0)


def is_needed(accelerator: str | None, version: tuple[int, int]) -> bool:
    """Return whether a guest of this QEMU should load commands without ASLR."""
    return accelerator == "tcg" and version < FIXED
