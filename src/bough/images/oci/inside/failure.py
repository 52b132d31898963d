"""Failures of the program, as the service is told."""

from __future__ import annotations

#: A layer's bytes differ from what the image promises, or are no tar archive; or an entry is refused.
BAD_LAYER = "bad-layer"
#: More bytes, entries or levels than allowed.
TOO_MUCH = "too-much"
NO_SPACE = "no-space"
#: An owner that the user namespace does not have.
NO_SUCH_ID = "no-such-id"
#: The host lacks a program.
HOST_LACKS = "host-lacks"

_SHOWN_BYTES = 200


class Failure(Exception):
    """The layers cannot be applied.

    Attributes:
        kind: one of the words above.
        entry: name of the entry in the layer, escaped; "" if no entry is concerned.
    """

    def __init__(self, kind: str, sentence: str, entry: bytes = b"") -> None:
        super().__init__(sentence)
        self.kind = kind
        self.sentence = sentence
        self.entry = show(entry) if entry else ""


def show(name: bytes) -> str:
    """Return a name for a message: bounded, on one line, other characters than visible ones escaped."""
    short = name if len(name) <= _SHOWN_BYTES else name[: _SHOWN_BYTES - 3] + b"..."
    text = short.decode("utf-8", "backslashreplace")
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text
    )
