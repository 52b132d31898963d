"""Count the requests under way: a client of another version may replace an idle service."""

from __future__ import annotations

from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send


class RequestCount:
    """The number of requests, counted while `app` serves.

    Attributes:
        count: open WebSockets and unanswered requests, except GET /v1/version.
    """

    def __init__(self, app: FastAPI) -> None:
        self.count = 0
        app.add_middleware(_Counting, requests=self)


class _Counting:
    def __init__(self, app: ASGIApp, requests: RequestCount) -> None:
        self._app = app
        self._requests = requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket") or scope["path"] == "/v1/version":
            await self._app(scope, receive, send)
            return
        self._requests.count += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._requests.count -= 1
