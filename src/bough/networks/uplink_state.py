"""The state of a machine's uplink at this moment."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from bough.networks.uplink import LABEL
from bough.networks.uplink_dns import resolver_names
from bough.networks.uplink_filter import has_default_route

_ROUTES = ("/proc/net/route", "/proc/net/ipv6_route")


def describe_uplink(machine_id: str) -> dict[str, Any]:
    """Return a running machine's `state`, a sentence about the problem, and the host's `resolvers`.

    The state is one of:

        "connected"   the uplink works
        "offline"     the host has no default route
        "broken"      the process that carries the machine's frames has ended; the machine has no
                      network until its next start
    """
    resolvers = [name.decode(errors="replace") for name in resolver_names()]
    if shutil.which("passt") and not _filter_runs(machine_id):
        return {
            "state": "broken",
            "detail": "its process has ended; restart the machine",
            "resolvers": resolvers,
        }
    if not any(map(has_default_route, _ROUTES)):
        return {"state": "offline", "detail": "this host has no default route", "resolvers": resolvers}
    return {"state": "connected", "detail": "", "resolvers": resolvers}


def _filter_runs(machine_id: str) -> bool:
    name = f"{LABEL}{machine_id}"[:15]
    for path in Path("/proc").glob("[0-9]*/comm"):
        try:
            if path.read_text().rstrip("\n") == name:
                return True
        except OSError:
            continue  # the process has just ended
    return False
