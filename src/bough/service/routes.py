"""Make the routes of the API from the requests of the contract. The handlers are plain functions.

Each route has the request's method, path, fields and docstring. FastAPI sees the signature of the route's
function, checks a client's request, and writes the OpenAPI document.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from fastapi import APIRouter, WebSocket
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse, Response

from bough.contract.request import Kind, Request
from bough.hypervisor import Hypervisor
from bough.progress import Report
from bough.service.answers import long_call
from bough.service.models import answer_type, body_model, fields_of

R = TypeVar("R", bound=Request)


class Routes:
    """The routes of one service.

    Attributes:
        requests: the requests with a route.
    """

    def __init__(self, hypervisor: Hypervisor) -> None:
        self.router = APIRouter(prefix="/v1")
        self.requests: list[type[Request]] = []
        self._hypervisor = hypervisor

    def quick(self, kind: type[R], handler: Callable[[Hypervisor, R], Awaitable[Any]]) -> None:
        """Add a call that answers with JSON at once."""
        self._expect(kind, "quick")

        async def answer(**given: Any) -> Response:
            return JSONResponse(await handler(self._hypervisor, _request(kind, given)))

        self._add(kind, answer)

    def long(self, kind: type[R], handler: Callable[[Hypervisor, R, Report], Awaitable[Any]]) -> None:
        """Add a call that answers with JSON after perhaps minutes. A client may ask for the progress."""
        self._expect(kind, "long")

        async def answer(http: HttpRequest, **given: Any) -> Response:
            request = _request(kind, given)
            return await long_call(http, lambda report: handler(self._hypervisor, request, report))

        self._add(kind, answer, ("http", HttpRequest))

    def content(
        self, kind: type[R], handler: Callable[[Hypervisor, R], Awaitable[str | bytes]], media_type: str
    ) -> None:
        """Add a call that answers with the plain content: a text, or bytes of `media_type`."""
        self._expect(kind, "text", "bytes")

        async def answer(**given: Any) -> Response:
            return Response(await handler(self._hypervisor, _request(kind, given)), media_type=media_type)

        self._add(kind, answer, responses={200: {"content": {media_type: {}}}}, response_class=Response)

    def stream(self, kind: type[R], handler: Callable[[Hypervisor, R, WebSocket], Awaitable[None]]) -> None:
        """Add a WebSocket. The handler accepts the WebSocket or answers with an error."""
        self._expect(kind, "stream")

        async def answer(socket: WebSocket, **given: Any) -> None:
            await handler(self._hypervisor, _request(kind, given), socket)

        answer.__signature__ = _signature(kind, ("socket", WebSocket))  # type: ignore[attr-defined]
        self.requests.append(kind)
        self.router.add_api_websocket_route(kind.route.path, answer)

    def _add(self, kind: type[Request], answer: Any, *context: tuple[str, Any], **described: Any) -> None:
        answer.__signature__ = _signature(kind, *context)
        self.requests.append(kind)
        if (told := answer_type(kind)) is not None:
            described["responses"] = {200: {"model": told}}
        path = kind.route.path
        self.router.add_api_route(
            path.replace("}", ":path}") if kind.route.slashes else path,
            answer,
            methods=[kind.route.method],
            operation_id=kind.__name__,
            summary=_split(kind.__name__),
            description=inspect.cleandoc(kind.__doc__ or ""),
            tags=[kind.__module__.rpartition(".")[2]],
            response_model=None,
            **described,
        )

    @staticmethod
    def _expect(kind: type[Request], *kinds: Kind) -> None:
        if kind.route.kind not in kinds:
            raise TypeError(f"the contract says that {kind.__name__} is {kind.route.kind}")


def _split(name: str) -> str:
    """Return "Start machine" for "StartMachine"."""
    return re.sub(r"(?<!^)(?=[A-Z])", " ", name).capitalize()


def _request(kind: type[R], given: dict[str, Any]) -> R:
    """Return the request from FastAPI's values of path, query and body."""
    body = given.pop("body", None)
    if kind.route.body:
        given[kind.route.body] = body
    elif body is not None:
        given |= {name: getattr(body, name) for name in type(body).model_fields}
    return kind(**given)


def _signature(kind: type[Request], *context: tuple[str, Any]) -> inspect.Signature:
    """Return the parameters of the route: of the path, and of either the query or the body."""
    route, fields = kind.route, fields_of(kind)
    in_path = route.in_path
    found = [_parameter(name, annotation) for name, annotation in context]
    found += [_parameter(name, fields[name][0]) for name in in_path]
    rest = [name for name in fields if name not in in_path]
    if route.body:
        found.append(_parameter("body", fields[route.body][0]))
    elif route.has_body and rest:
        model = body_model(kind)
        found.append(
            _parameter("body", model | None, None) if route.body_optional else _parameter("body", model)
        )
    elif not route.has_body:
        found += [_parameter(name, *fields[name]) for name in rest]
    return inspect.Signature(found)


def _parameter(name: str, annotation: Any, default: Any = ...) -> inspect.Parameter:
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=inspect.Parameter.empty if default is ... else default,
        annotation=annotation,
    )
