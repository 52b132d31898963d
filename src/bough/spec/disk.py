"""Disks of a spec: buses, and the form "SIZE,bus=...,serial=..."."""

from __future__ import annotations

from typing import Any, Literal

Bus = Literal["virtio", "scsi", "sata", "ide", "nvme"]

_KEYS = ("bus", "serial")


def disk(value: Any) -> Any:
    """Read a disk from "10GiB", "10GiB,bus=sata" or "10GiB,serial=data", a number of bytes, or a table."""
    from bough.spec.problems import did_you_mean, quote, told

    if isinstance(value, int) and not isinstance(value, bool):
        return {"size": value}
    if not isinstance(value, str):
        return value
    size, *rest = value.split(",")
    table = {"size": size}
    for word in rest:
        key, equals, text = word.partition("=")
        if key not in _KEYS or not equals or key in table:
            hint = did_you_mean(key, _KEYS) if key not in _KEYS else None
            raise told(f"expected a disk like '10GiB' or '10GiB,bus=sata', got {quote(value)}", hint)
        table[key] = text
    return table
