"""Carry the streams of a command between the WebSocket and this process. Imports few modules."""

from __future__ import annotations

import _thread
import os
import time

from bough.errors import BoughError, ServiceUnavailable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from bough.client.websocket import WebSocket

_STDIN, _STDERR, _STATUS, _CLOSE = 0, 2, 3, 255
#: For a machine that is up within this time, no progress is shown.
_PATIENCE_S = 1.0
_PLAIN_NOTICE = (
    '{"progress": {"step": "',
    '", "fraction": null, "detail": "", "notice": true, "subject": ""}}',
)
_ENDED_WELL = (b'{"exit_code": ', b', "signal": null, "error": null}')


def carry(socket: WebSocket, command: str, *, stdin: bool) -> int:
    """Carry the streams until the command has ended. Return the exit status for the shell.

    Args:
        command: first word of the command, to recognize an error that means "no such program".
        stdin: pass on this process's standard input; otherwise the command reads an end of file.

    Raises:
        BoughError: the command could not be run, or its end is not known.
    """
    if stdin:
        _thread.start_new_thread(_pass_stdin, (socket,))
    else:
        _send_end(socket)
    while True:
        message = socket.receive()
        if message is None:
            raise ServiceUnavailable("the service ended before the command did", hint="try again")
        if isinstance(message, bytes) and message:
            if message[0] == _STATUS:
                socket.close()
                return _read_status(message[1:], command)
            write(2 if message[0] == _STDERR else 1, message[1:])


def await_machine(socket: WebSocket) -> str:
    """Return the service's message when the machine of a run is up. A long wait shows progress on stderr.

    Raises:
        BoughError: the machine did not come up.
    """
    deadline = time.monotonic() + _PATIENCE_S
    last, told = None, None
    notices: list[str] = []
    try:
        while True:
            try:
                message = socket.receive(max(0.0, deadline - time.monotonic()) if told is None else None)
            except TimeoutError:
                from bough.cli.output import progress

                told = progress()
                report = told.__enter__()
                while notices:
                    _report(report, notices.pop(0))
                message = last or ""
            if message is None:
                raise ServiceUnavailable("the service ended before the machine was up", hint="try again")
            if isinstance(message, bytes):
                _read_status(message[1:], "")
                return ""
            if message.startswith('{"machine"'):
                return message
            if told is None and '"notice": true' in message:
                notices.append(message)
                continue
            last = message
            if told is not None and message:
                _report(report, message)
    finally:
        if told is not None:
            told.__exit__(None, None, None)
        for message in notices:
            _show_notice(message)


def _report(report: Any, message: str) -> None:
    import json

    from bough.client.connection import report_progress

    report_progress(report, json.loads(message).get("progress", {}))


def _show_notice(message: str) -> None:
    """Print a notice. Plain text needs no JSON, whose import takes longer than a fork."""
    begin, end = _PLAIN_NOTICE
    text = message[len(begin) : -len(end)]
    if message.startswith(begin) and message.endswith(end) and "\\" not in text:
        write(2, f"note: {text}\n".encode())
        return
    from bough.cli.output import progress

    with progress() as report:
        _report(report, message)


def write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _pass_stdin(socket: WebSocket) -> None:
    try:
        while data := os.read(0, 128 * 1024):
            socket.send(bytes((_STDIN,)) + data)
        _send_end(socket)
    except (OSError, BoughError):
        pass  # the command has ended, or this terminal has


def _send_end(socket: WebSocket) -> None:
    try:
        socket.send(bytes((_CLOSE, _STDIN)))
    except BoughError:
        pass  # the command has ended: the status follows


def _read_status(content: bytes, command: str) -> int:
    # Most commands end with such a status, and json takes as long to load as this module.
    begin, end = _ENDED_WELL
    if content.startswith(begin) and content.endswith(end):
        code = content[len(begin) : -len(end)]
        if code.isdigit():
            return int(code)
    from bough.client.process import read_status
    from bough.errors import GuestRefused

    try:
        return read_status(content).shell_code
    except GuestRefused as error:
        # A shell's status, if the command is missing (and not the user or the directory).
        status = error.details.get("shell_status")
        shown = os.fsencode(command).decode(errors="replace")
        if status is None:
            if not error.message.startswith(f"{shown[:200]}: ") or not error.details.get("errno"):
                raise
            status = 127 if error.details["errno"] == "ENOENT" else 126
        from bough.cli.output import show_error

        show_error(error)
        return status
