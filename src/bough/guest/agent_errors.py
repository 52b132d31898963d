"""Errors of the agent, as sent to the host."""

from __future__ import annotations

import os


class Refused(Exception):
    """A request that cannot be served. The host gets the message; the agent is not at fault."""


def describe_error(error: BaseException) -> dict[str, object]:
    """Return the content of an ERROR frame."""
    code = getattr(error, "errno", None)
    name = None
    if code is not None:
        import errno

        name = errno.errorcode.get(code)
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    filename = getattr(error, "filename", None)
    if isinstance(filename, (str, bytes)):
        text = f"{os.fsdecode(filename)}: {text}"
    # Text for people: a name outside of UTF-8 is shown as well as possible.
    shown = text[:4000].encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return {"message": shown, "errno": name}
