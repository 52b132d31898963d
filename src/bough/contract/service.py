"""Requests about the service: the version and the end."""

from __future__ import annotations

from bough.contract.request import Request, Route

#: Changes when an older client does not understand the service any more.
API_VERSION = 1


class GetVersion(Request):
    """Return the version of the service, its process, and the number of other requests under way."""

    route = Route("GET", "/version")


class ShutDown(Request):
    """End the service. Machines continue, and the next service adopts them."""

    route = Route("POST", "/shutdown")
