"""The state of a machine's uplink at this moment."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from bough.networks.uplink import LABEL, NETWORK_LABEL
from bough.networks.uplink_dns import resolver_names
from bough.networks.uplink_filter import has_default_route

_ROUTES = ("/proc/net/route", "/proc/net/ipv6_route")


def describe_uplink(machine_id: str, network: str | None = None) -> dict[str, Any]:
    """Return a running machine's `state`, a sentence about it, the host's `resolvers`, and `network`.

    Args:
        network: name of the network through which the machine reaches the outside; None: its own uplink.

    The state is one of:

        "connected"   the uplink works
        "offline"     the host has no default route
        "broken"      the process that carries the machine's frames has ended; the machine has no own uplink
                      until its next start
    """
    word, detail = _find_state(machine_id, network)
    resolvers = [name.decode(errors="replace") for name in resolver_names()]
    return {"state": word, "detail": detail, "resolvers": resolvers, "network": network}


def _find_state(machine_id: str, network: str | None) -> tuple[str, str]:
    label = LABEL if network is None else NETWORK_LABEL
    if shutil.which("passt") and not _runs(f"{label}{machine_id}"):
        next_ = "restart the machine" if network is None else "bough starts another one"
        return "broken", f"its process has ended; {next_}"
    if not any(map(has_default_route, _ROUTES)):
        return "offline", "this host has no default route"
    return "connected", ""


def _runs(process: str) -> bool:
    name = process[:15]
    for path in Path("/proc").glob("[0-9]*/comm"):
        try:
            if path.read_text().rstrip("\n") == name:
                return True
        except OSError:
            continue  # the process has just ended
    return False
