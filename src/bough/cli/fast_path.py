"""The fast path of `exec` and `run` without options, the most frequent calls.

Loading libraries for options, HTTP and JSON takes an interpreter several times as long as the command. In any
other case (an option, no service, another version, a refusal) the ordinary code starts over and reports the
problem.
"""

from __future__ import annotations

import _socket
import os

from bough.cli.command_streams import await_machine, carry
from bough.client.websocket import WebSocket
from bough.errors import BoughError
from bough.home import API_SOCKET, RUNTIME, SocketAddress, find_home
from bough.version import __version__

_NAME = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.")


def attempt(words: list[str]) -> int | None:
    """Run a command and return its exit status. None: nothing ran; use the ordinary code.

    Raises:
        BoughError: the command was started, and the end is unknown.
    """
    if len(words) < 3 or words[0] not in ("exec", "run") or words[1].startswith("-"):
        return None
    verb, of, command = words[0], words[1], words[2:]
    if command[0] == "--":
        del command[0]
    elif command[0].startswith("-"):
        return None
    if not command or not all(map(_is_plain, command)) or not _is_plain(of) or _is_relative(of):
        return None
    told = f'{{"argv": [{", ".join(map(_quote, command))}]}}'
    if verb == "run":
        target = "/v1/run"
        told = f'{{"spec": {{"image": {_quote(of)}}}, "command": {told}}}'
    elif _NAME.issuperset(of):
        target = f"/v1/machines/{of}/exec"
    else:
        return None
    socket = _open(f"{target}?client={__version__}")
    if socket is None:
        return None
    socket.send_text(told)
    if verb == "run":
        await_machine(socket)
    return carry(socket, command[0], stdin=not os.isatty(0))


def _open(target: str) -> WebSocket | None:
    stream = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        with SocketAddress(f"{find_home()}/{RUNTIME}/{API_SOCKET}") as address:
            stream.connect(address)
        return WebSocket(stream, target)
    except (OSError, BoughError):
        stream.close()
        return None


def _is_relative(image: str) -> bool:
    """Return whether an image's name has a path that starts here; client/spec_files.py makes it absolute."""
    transport, _, path = image.partition(":")
    if transport == "oci":
        layout = f"{path.partition(':')[0]}/oci-layout"
        return path[:1] in (".", "~") or os.path.exists(layout)  # noqa: PTH110 (pathlib loads slowly)
    return transport in ("oci-archive", "docker-archive")


def _is_plain(word: str) -> bool:
    return word.isascii() and word.isprintable()


def _quote(word: str) -> str:
    """Write a plain word as a JSON string."""
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"'
