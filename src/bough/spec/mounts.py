"""Directories shared by host and machine: permitted paths, and the form "SOURCE:TARGET:rw".

`split_mount` imports no pydantic: clients make paths absolute before a spec is validated.
"""

from __future__ import annotations

import posixpath
from typing import Any

MOST_CACHE_S = 3600
#: The guest's own directories. No mount may be at or below them.
_NOT_BELOW = ("/proc", "/sys", "/dev", "/run/bough", "/usr/lib/bough", "/var/lib/bough")
#: A mount at one of these directories would hide files that the guest needs.
_NOT_AT = (
    *("/", "/bin", "/boot", "/etc", "/lib", "/lib32", "/lib64", "/run", "/sbin", "/usr", "/usr/bin"),
    *("/usr/lib", "/usr/sbin", "/var", "/var/lib"),
)


def split_mount(text: str) -> dict[str, Any]:
    """Split "SOURCE:TARGET", with an optional ":ro" or ":rw"; default: read-only.

    Raises:
        ValueError: the text has another form.
    """
    rest, colon, mode = text.rpartition(":")
    if not colon or mode not in ("ro", "rw"):
        rest, mode = text, "ro"
    source, colon, target = rest.rpartition(":/")
    if not colon or not source:
        raise ValueError(f"expected SOURCE:TARGET[:ro|:rw] like './src:/srv/src:rw', got {text[:80]!r}")
    return {"source": source, "target": f"/{target}", "writable": mode == "rw"}


def mount(value: Any) -> Any:
    from bough.spec.problems import told

    if not isinstance(value, str):
        return value
    try:
        return split_mount(value)
    except ValueError as error:
        hint = "TARGET is an absolute path in the guest" if ":" in value else None
        raise told(str(error), hint) from None


def mount_source(value: Any) -> str:
    from bough.spec import values
    from bough.spec.problems import quote, told

    path = values.host_path(value)
    if len(path.encode()) > 4000:
        raise told(f"expected a path of at most 4000 bytes, got {quote(path)}")
    return path


def mount_target(value: Any) -> str:
    """Check an absolute path in the guest at which a directory of the host can be mounted."""
    from bough.spec import values
    from bough.spec.problems import quote, told

    path = value.rstrip("/") or "/" if isinstance(value, str) else value
    if path != "/":
        path = values.guest_path(path)
    if len(path.encode()) > 1000:
        raise told(f"expected a path of at most 1000 bytes, got {quote(path)}")
    within = [place for place in _NOT_BELOW if posixpath.commonpath([path, place]) == place]
    if path in _NOT_AT or within:
        raise told(
            f"{within[0] if within else path} is the guest's own", "choose a directory like '/srv/src'"
        )
    return str(path)


def mount_cache(value: Any) -> int:
    """Return whole seconds, from "5s", "1m" or a number."""
    from bough.spec.problems import quote, told
    from bough.units import parse_duration

    try:
        seconds = parse_duration(value)
    except ValueError as error:
        raise told(str(error)) from None
    if seconds != int(seconds) or seconds > MOST_CACHE_S:
        raise told(f"expected whole seconds, at most {MOST_CACHE_S}, got {quote(value)}")
    return int(seconds)
