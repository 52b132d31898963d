"""A request of the API: a message with a route."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from bough.contract.message import Message, to_json

if TYPE_CHECKING:
    from collections.abc import Mapping

Kind = Literal["quick", "long", "text", "bytes", "stream"]
_BODIES = ("POST", "PUT", "PATCH")
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.~")


class Route(NamedTuple):
    """Method and path of a request.

    Attributes:
        path: below /v1. A name in braces is a field of the request.
        kind: form of the answer. "quick": JSON at once; "long": JSON after perhaps minutes, with progress on
            request; "text", "bytes": the content itself; "stream": a WebSocket.
        body: name of the field that is the whole body. Without it, the body of a POST, PUT or PATCH has each
            field that is not in the path. The fields of other requests are in the query.
        body_optional: a request without a body has the defaults.
        first_message: class of the client's first message on the WebSocket.
        slashes: a field in the path may contain slashes, quoted as %2F.
    """

    method: str
    path: str
    kind: Kind = "quick"
    body: str = ""
    body_optional: bool = False
    first_message: type[Message] | None = None
    slashes: bool = False

    @property
    def in_path(self) -> list[str]:
        """Return the names of the fields in the path."""
        return [part[1:-1] for part in self.path.split("/") if part.startswith("{")]

    @property
    def has_body(self) -> bool:
        return self.method in _BODIES


def stream(path: str, first_message: type[Message] | None = None) -> Route:
    """Return the route of a WebSocket."""
    return Route("GET", path, "stream", first_message=first_message)


class Request(Message):
    """Base of all requests. A subclass names the route. The docstring describes the call.

    Attributes:
        answer: type of the answer, for the OpenAPI document and the reader. No value.
    """

    route: ClassVar[Route]
    answer: ClassVar[Any]

    def render_target(self) -> str:
        """Return path and query, quoted."""
        parts = [
            quote(str(self.__dict__[part[1:-1]])) if part.startswith("{") else part
            for part in self.route.path.split("/")
        ]
        return "/".join(parts) + ("" if self.route.has_body else render_query(self._rest()))

    def render_body(self) -> Any:
        """Return the body as JSON has it; None for a request without a body."""
        route = self.route
        if not route.has_body:
            return None
        if route.body:
            return to_json(self.__dict__[route.body])
        return self._rest() if set(self.fields) - set(route.in_path) else None

    def _rest(self) -> dict[str, Any]:
        """Return the fields outside of the path."""
        in_path = self.route.in_path
        return {name: value for name, value in self.to_dict().items() if name not in in_path}


def render_query(values: Mapping[str, Any]) -> str:
    """Return "?name=value&...", or "" without values."""
    given = [f"{name}={quote(_word(value))}" for name, value in values.items()]
    return "?" + "&".join(given) if given else ""


def quote(text: str) -> str:
    """Quote a part of a path or of a query, slashes included."""
    if _PLAIN.issuperset(text):
        return text
    from urllib.parse import quote

    return quote(text, safe="")


def _word(value: Any) -> str:
    return str(int(value)) if isinstance(value, bool) else str(value)
