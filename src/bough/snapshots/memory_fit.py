"""Checks whether this host can continue from a memory of another host: accelerator and CPU."""

from __future__ import annotations

from collections.abc import Mapping

from bough.qemu.accelerators import Accelerator

#: What the CPUs of "auto" change in their model; see qemu/arch.py.
_OWN_CHANGES = ("", "svm=off")


def accelerator_bar(its: str, accelerators: Mapping[str, Accelerator], wanted: str) -> str | None:
    """Return why a memory of the accelerator `its` cannot continue, or would be slow; None: it can.

    Args:
        wanted: "auto", or the accelerator that the user asked for.
    """
    if its not in accelerators or not accelerators[its].usable:
        return f"it ran on {its}, which does not work here"
    if wanted == "auto" and not _is_fastest(its, accelerators):
        return "it was emulated (tcg), and this host has KVM, which cannot continue the memory"
    if wanted not in ("auto", its):
        return f"it ran on {its}, and {wanted} cannot continue its memory"
    return None


def cpu_bar(its: str, cpu: str, accelerators: Mapping[str, Accelerator]) -> str | None:
    """Return why this host's processor cannot continue a memory, or None. TCG emulates any processor."""
    complete = accelerators["kvm"].cpu_models
    if its != "kvm" or not complete:
        return None
    model, _, changes = cpu.partition(",")
    if model in ("host", "max"):
        return f"its processor is that of the exporting host ({model}), and may differ from this one"
    # With other changes a user may have switched off the features that this host lacks.
    if changes in _OWN_CHANGES and model not in complete:
        return f"this host's processor lacks features of its processor {model}"
    return None


def render_instead(its: str, accelerators: Mapping[str, Accelerator]) -> str:
    """Return a hint: what works instead."""
    cold = "import only its disks, and boot: --cold"
    if its == "tcg" and accelerators["tcg"].usable:
        return f"{cold}; or let it continue, emulated and slow: --accelerator tcg"
    return cold


def _is_fastest(name: str, accelerators: Mapping[str, Accelerator]) -> bool:
    return next((each.name for each in accelerators.values() if each.usable), name) == name
