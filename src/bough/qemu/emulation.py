"""Special treatment of emulated guests (TCG). A guest on KVM runs at the processor's speed."""

from __future__ import annotations


def gives_way(accelerator: str | None) -> bool:
    """Return whether a fork's work after its first answer is slow enough to be put off for other forks.

    An emulated fork needs up to a second of a processor to settle: each woken service is translated anew.
    """
    return accelerator != "kvm"
