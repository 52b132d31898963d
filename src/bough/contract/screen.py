"""Requests about a machine's screen, keyboard and serial console."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from bough.contract.request import Request, Route, stream

if TYPE_CHECKING:
    from bough.contract.checks import Length


class GetScreenshot(Request):
    """Return a picture of the screen, as PNG."""

    route = Route("GET", "/machines/{reference}/screenshot", "bytes")
    reference: str


class GetScreenText(Request):
    """Return the text of the screen, if the screen is in VGA's text mode."""

    route = Route("GET", "/machines/{reference}/screen-text", "text")
    reference: str


class PressKeys(Request):
    """Press keys: first the characters of `text`, then each of `keys` ("enter", "ctrl-alt-delete")."""

    route = Route("POST", "/machines/{reference}/keys")
    reference: str
    text: str = ""
    keys: Annotated[Sequence[str], Length(most=256)] = ()


class AttachConsole(Request):
    """Connect to the serial console. With `backlog`, the end of earlier output comes first."""

    route = stream("/machines/{reference}/console")
    reference: str
    backlog: bool = False
