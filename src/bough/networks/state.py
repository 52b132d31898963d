"""The state of a machine's uplink, as the host shows it at this moment."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from bough.networks.uplink import LABEL
from bough.networks.uplink_dns import resolver_names
from bough.networks.uplink_filter import has_default_route

_ROUTES = ("/proc/net/route", "/proc/net/ipv6_route")


def describe_uplink(machine_id: str) -> dict[str, Any]:
    """Of a running machine: `state`, a sentence about what is wrong, and `resolvers` of the host.

    The state is "connected"; "offline": the host has no route to anywhere; "broken": the program that carries
    the machine's frames has ended, and the machine has no network until its next start.
    """
    resolvers = [name.decode(errors="replace") for name in resolver_names()]
    if shutil.which("passt") and not _filter_runs(machine_id):
        return {
            "state": "broken",
            "detail": "its program has ended; the next start begins another",
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
            continue  # it has just ended
    return False
