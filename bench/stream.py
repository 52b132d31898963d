"""Programs of guests: a stream over TCP with idle connections beside it, and the server of both.

    stream.py serve           check and acknowledge the blocks of streams; echo what idle connections say
    stream.py send HOST       send blocks without end; keep 20 connections that are idle
    stream.py look SECONDS    ask the sender whether the stream and all idle connections go on

The stream sends 64 KiB every 16 ms, 32 Mbit/s: a stream at full rate would use all processors of an emulated
host, and the benchmark would measure the wait for a processor. Each block begins with its number. The server
ends the connection if a number is missing. `look` prints an error and ends with 1 if not all go on in time.

Standard library only: the program is copied into guests.
"""

from __future__ import annotations

import json
import socket
import socketserver
import sys
import threading
import time
from pathlib import Path

PORT, CONTROL = 9100, "/run/stream.sock"
IDLE = 20
BLOCK = 64 * 1024
EVERY_S = 0.016
#: Blocks that the server has not acknowledged yet.
WINDOW = 16
#: The stream goes on if so many more blocks were acknowledged: more than were under way.
MORE = 2 * WINDOW
STREAM, QUIET = b"s", b"i"


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = daemon_threads = True
    request_queue_size = 64


class Answer(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        kind, number = self.rfile.read(1), 0
        if kind == QUIET:
            for line in self.rfile:
                self.wfile.write(line)
        while kind == STREAM and len(block := self.rfile.read(BLOCK)) == BLOCK:
            if int.from_bytes(block[:8], "big") != number:
                return
            self.wfile.write(block[:8])
            number += 1


class Sender:
    def __init__(self, host: str) -> None:
        self._stream = _connect(host, STREAM)
        self._idle = [_connect(host, QUIET) for _ in range(IDLE)]
        self._acknowledged = 0
        self._arrived = threading.Condition()
        self.error = ""

    def send(self) -> None:
        number, rest = 0, bytes(BLOCK - 8)
        while True:
            self._wait_window(number)
            self._stream.sendall(number.to_bytes(8, "big") + rest)
            number += 1
            time.sleep(EVERY_S)

    def _wait_window(self, number: int) -> None:
        with self._arrived:
            self._arrived.wait_for(lambda: number - self._acknowledged < WINDOW)

    def count(self) -> None:
        with self._stream.makefile("rb") as answers:
            while len(answers.read(8)) == 8:
                with self._arrived:
                    self._acknowledged += 1
                    self._arrived.notify_all()
        self.error = self.error or "the server has ended the stream"

    def keep(self, work: str) -> None:
        try:
            getattr(self, work)()
        except OSError as error:
            self.error = self.error or repr(error)

    def state(self) -> dict[str, object]:
        return {"blocks": self._acknowledged, "idle": sum(map(_echoes, self._idle)), "error": self.error}


def _connect(host: str, kind: bytes) -> socket.socket:
    made = socket.create_connection((host, PORT), 20)
    made.settimeout(None if kind == STREAM else 2)
    made.sendall(kind)
    return made


def _echoes(connection: socket.socket) -> bool:
    try:
        connection.sendall(b"idle\n")
        return connection.recv(16) == b"idle\n"
    except OSError:
        return False


def send(host: str) -> None:
    """Send, and tell each connection to CONTROL how far the stream is. Runs until it is killed."""
    sender = Sender(host)
    for work in ("send", "count"):
        threading.Thread(target=sender.keep, args=(work,), daemon=True).start()
    Path(CONTROL).unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as control:
        control.bind(CONTROL)
        control.listen()
        while True:
            with control.accept()[0] as asking:
                asking.sendall(json.dumps(sender.state()).encode())


def look(seconds: float) -> str:
    """Return "" if the stream and all idle connections go on; otherwise what does not, after `seconds`."""
    ends, first = time.monotonic() + seconds, _ask(seconds)
    while True:
        now = _ask(seconds)
        more = now["blocks"] - first["blocks"]
        if now["error"] or (more >= MORE and now["idle"] == IDLE):
            return str(now["error"])
        if time.monotonic() > ends:
            return f"{more} blocks in {seconds:g} s, {now['idle']} of {IDLE} idle connections"
        time.sleep(0.05)


def _ask(seconds: float) -> dict:  # type: ignore[type-arg]
    with socket.socket(socket.AF_UNIX) as control:
        control.settimeout(seconds)
        control.connect(CONTROL)
        with control.makefile("rb") as told:
            return dict(json.loads(told.read()))


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        with Server(("", PORT), Answer) as server:
            server.serve_forever()
    elif sys.argv[1] == "send":
        send(sys.argv[2])
    elif missing := look(float(sys.argv[2])):
        sys.exit(missing)
