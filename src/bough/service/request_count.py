"""Count the requests under way: a client of another version may replace an idle service."""

from __future__ import annotations

from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send


class Usage:
    """The number of requests, counted while `app` serves.

    Attributes:
        count: open WebSockets and unanswered requests, except GET /v1/version.
    """

    def __init__(self, app: FastAPI) -> None:
        self.count = 0
        app.add_middleware(_Counting, usage=self)


class _Counting:
    def __init__(self, app: ASGIApp, usage: Usage) -> None:
        self._app = app
        self._usage = usage

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket") or scope["path"] == "/v1/version":
            await self._app(scope, receive, send)
            return
        self._usage.count += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._usage.count -= 1
