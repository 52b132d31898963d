"""A command in the form for the agent, within Linux's limits (execve(2))."""

from __future__ import annotations

import os
from typing import Any

from bough.errors import GuestRefused
from bough.guest import wire
from bough.guest.session import ExecRequest

#: MAX_ARG_STRLEN, including the final zero byte.
MAX_WORD_BYTES = 128 * 1024
#: A quarter of a stack of 8 MiB. A pointer for each word counts.
MAX_ALL_BYTES = 2 * 1024 * 1024
_POINTER_BYTES = 8
#: Words in a list cost the agent one value each.
_MOST_LISTED = 1000
_HINT = "pass it on standard input, or in a file: bough cp"


def check_command(request: ExecRequest, machine: str) -> None:
    """Check a command. Raises GuestRefused if the guest's kernel would not accept it."""
    command = request.argv[0] if request.argv else ""

    def refuse(text: str, errno: str, hint: str | None = None) -> GuestRefused:
        shown = os.fsencode(command).decode(errors="replace")
        return GuestRefused(f"{shown[:200]}: {text}", machine=machine, errno=errno, hint=hint)

    pairs = [f"{name}={value}" for name, value in request.env.items()]
    total = 0
    for word in (*request.argv, *pairs):
        size = len(os.fsencode(word)) + 1
        total += size + _POINTER_BYTES
        if "\0" in word:
            raise refuse("a word of a command cannot hold a zero byte", "EINVAL")
        if size > MAX_WORD_BYTES:
            raise refuse(
                f"one word has {size - 1} bytes; the limit of Linux is {MAX_WORD_BYTES - 1}", "E2BIG", _HINT
            )
    if total > MAX_ALL_BYTES:
        text = f"the words and the environment have {total} bytes; the limit of Linux is {MAX_ALL_BYTES}"
        raise refuse(text, "E2BIG", _HINT)
    for name in request.env:
        if not name or "=" in name or not name.isprintable():
            text = f"{name[:80]!r} cannot be the name of an environment variable"
            raise refuse(text, "EINVAL", "-e NAME=VALUE")


def encode_command(values: dict[str, Any], *, joined: bool) -> bytes:
    """Return the payload of EXEC. With `joined`, a command of many words has all words in one value."""
    if not joined or len(values["argv"]) + 2 * len(values["env"]) <= _MOST_LISTED:
        return wire.encode(values)
    values |= {"words": _join(values["argv"]), "env": _join(f"{k}={v}" for k, v in values["env"].items())}
    return wire.encode({**values, "argv": []})


def _join(words: Any) -> bytes:
    return b"".join(os.fsencode(word) + b"\0" for word in words)
