"""Errors of an answer: the service refused a request, or closed the connection."""

from __future__ import annotations

import json

import h11

from bough.errors import BoughError, ProtocolError, ServiceUnavailable, error_from_dict

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_READ_BYTES = 64 * 1024


def read_refusal(stream: Any, begun: bytes) -> BoughError:
    """Return the error that came instead of a WebSocket. `begun` is the part of the answer already read."""
    http = h11.Connection(h11.CLIENT, max_incomplete_event_size=256 * 1024)
    http.send(h11.Request(method="GET", target="/", headers=[("Host", "bough")]))
    http.send(h11.EndOfMessage())
    content, status = b"", 0
    try:
        http.receive_data(begun)
        while not isinstance(event := http.next_event(), h11.EndOfMessage | h11.ConnectionClosed):
            if event is h11.NEED_DATA:
                http.receive_data(stream.recv(_READ_BYTES))
            elif isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                content += event.data
    except (h11.RemoteProtocolError, OSError) as error:
        return lost(error)
    return error_of_answer(status, content) if status else lost(None)


def error_of_answer(status: int, content: bytes) -> BoughError:
    """Return the error in an answer of status >= 400."""
    try:
        return error_from_dict(json.loads(content)["error"])
    except (ValueError, KeyError, TypeError, AttributeError):
        text = content[:200].decode(errors="replace").strip()
        return ProtocolError(f"the service answered with status {status}: {text or 'nothing'}")


def lost(error: BaseException | None) -> ServiceUnavailable:
    return ServiceUnavailable(
        f"the service closed the connection{f' ({error})' if error else ''}",
        hint="it may have been restarted: try again; its log is service.log in BOUGH_HOME",
    )
