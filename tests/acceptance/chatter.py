"""Two programs of guests that talk over TCP: a server that echoes lines, and a client with connections.

    chatter.py serve                 echo all lines on port 9000, and answer "whose" with /run/whose
    chatter.py talk HOST             one connection sends numbered lines without end; 20 are idle

The client writes below /run/chatter: `count`, the lines echoed so far; `error`, why a connection has ended;
and `idle`, the number of idle connections that still echo, and the content of the server's /run/whose, each
time after `check` is made.
"""

from __future__ import annotations

import socket
import socketserver
import sys
import time
from pathlib import Path

PORT = 9000
IDLE = 20
TALK = Path("/run/chatter")


class Echo(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        for line in self.rfile:
            self.wfile.write(Path("/run/whose").read_bytes() if line == b"whose\n" else line)


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = daemon_threads = True
    request_queue_size = 64


def ask(connection: socket.socket, line: bytes) -> bytes:
    connection.sendall(line)
    got = b""
    while not got.endswith(b"\n"):
        data = connection.recv(100)
        if not data:
            raise ConnectionError("the server has closed the connection")
        got += data
    return got


def write(name: str, text: str) -> None:
    new = TALK / f"{name}.new"
    new.write_text(text)
    new.rename(TALK / name)


def talk(host: str) -> None:
    TALK.mkdir(exist_ok=True)
    idle = [socket.create_connection((host, PORT)) for _ in range(IDLE)]
    stream, count = socket.create_connection((host, PORT)), 0
    while True:
        if ask(stream, b"%d\n" % count) != b"%d\n" % count:
            raise ConnectionError(f"line {count} was echoed wrong")
        count += 1
        write("count", str(count))
        if (TALK / "check").exists():
            (TALK / "check").unlink()
            echoed = sum(ask(one, b"idle\n") == b"idle\n" for one in idle)
            write("idle", f"{echoed} {ask(idle[0], b'whose' + bytes((10,))).decode()}")
        time.sleep(0.02)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        with Server(("", PORT), Echo) as server:
            server.serve_forever()
    try:
        talk(sys.argv[2])
    except OSError as error:
        write("error", repr(error))
