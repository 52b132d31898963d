"""Requests about the host: doctor, standby machines, events, holds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from bough.contract.request import Request, Route, stream

if TYPE_CHECKING:
    from bough.contract.checks import STANDBY_MACHINES


class CheckHost(Request):
    """Report what the host has and lacks, and how to install missing parts.

    `probe` tests the accelerators with a guest.
    """

    route = Route("GET", "/doctor", "long")
    probe: bool = True
    arch: str | None = None


class AuditStore(Request):
    """Check everything on disk; with `repair`, make the safe repairs."""

    route = Route("POST", "/doctor/store", "long")
    repair: bool = False


class ListStandby(Request):
    """List the requests for standby machines: spec or snapshot, and how many machines are `ready`."""

    route = Route("GET", "/standby")


class KeepStandby(Request):
    """Keep `count` standby machines of either `spec` or `snapshot`; 0 stops keeping them.

    bough makes the machines in the background.
    """

    route = Route("PUT", "/standby")
    spec: dict[str, Any] | None = None
    snapshot: str | None = None
    count: Annotated[int, STANDBY_MACHINES]


class WatchEvents(Request):
    """Send each event of a machine as JSON, from `since` on."""

    route = stream("/events")
    since: str | None = None


class HoldMachine(Request):
    """Keep an ephemeral machine alive while this WebSocket is open."""

    route = stream("/machines/{reference}/hold")
    reference: str
