"""Sizes and times in texts for people.

A size is an int of bytes, in a text such as "1.5 GiB" or "1048576". Units without "iB" (2G) are binary units
like in QEMU and qemu-img. A time is a float of seconds, in a text such as "90" or "1h30m". Units of a time go
from ms to d.
"""

from __future__ import annotations

import re

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB
TIB = 1024 * GIB

_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(i?B)?\s*", re.IGNORECASE)
_RATE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmg]?)(?:bit)?\s*", re.IGNORECASE)
_BITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}
_FACTOR = {"": 1, "K": KIB, "M": MIB, "G": GIB, "T": TIB}
_TIME_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def parse_size(text: str | int) -> int:
    """Return bytes. Raises ValueError; the message names the expected form."""
    if isinstance(text, bool) or not isinstance(text, str | int):
        raise ValueError(f"expected a size like '512MiB', got {text!r}")
    if isinstance(text, int):
        if text < 0:
            raise ValueError(f"a size cannot be negative, got {text}")
        return text
    match = _SIZE.fullmatch(text)
    if match is None or len(text) > 32:
        raise ValueError(f"expected a size like '512MiB' or '10GiB', got {text[:40]!r}")
    return int(float(match[1]) * _FACTOR[match[2].upper()])


def parse_rate(text: str | int) -> int:
    """Return bits per second of "1mbit", "64kbit", "1.5gbit" or 64000. Raises ValueError."""
    if isinstance(text, int) and not isinstance(text, bool):
        return text
    match = _RATE.fullmatch(text) if isinstance(text, str) else None
    if match is None or len(str(text)) > 32:
        raise ValueError(f"expected a rate like '1mbit' or '64kbit', got {str(text)[:40]!r}")
    return round(float(match[1]) * _BITS[match[2].lower()])


def format_size(size_bytes: int) -> str:
    """Return the shortest exact or one-decimal form: 512 MiB, 1.5 GiB, 17 B."""
    value = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if value == int(value) or unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB" if value != int(value) else f"{value:.0f} TiB"


def parse_duration(text: str | float) -> float:
    """Return seconds. Raises ValueError; the message names the expected form."""
    if isinstance(text, int | float) and not isinstance(text, bool):
        seconds = float(text)
    elif isinstance(text, str) and re.fullmatch(r"\d+(\.\d+)?", text.strip()):
        seconds = float(text)
    elif isinstance(text, str) and re.fullmatch(rf"(?:{_TIME_PART.pattern})+", text.strip()):
        seconds = sum(float(number) * _SECONDS[unit] for number, unit in _TIME_PART.findall(text))
    else:
        raise ValueError(f"expected a time like '30s' or '2m', got {str(text)[:40]!r}")
    if not 0 <= seconds < 10 * 365 * 86400:
        raise ValueError(f"expected a time between 0 and ten years, got {str(text)[:40]!r}")
    return seconds


def format_duration(seconds: float) -> str:
    """Return a time for people: 340 ms, 3 min 5 s, 4 days."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60)} s"
    if seconds < 86400:
        return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60)} min"
    return f"{int(seconds // 86400)} days"
