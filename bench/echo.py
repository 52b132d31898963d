"""Measure round trips of a TCP connection: a server and a client, in a guest or on this host.

    python3 echo.py serve PORT        answer each request; runs until it is killed
    python3 echo.py ask PORT COUNT    print the median of COUNT round trips in seconds

Standard library only: the program is copied into guests. Requests have 36 bytes, answers 60, as in a login by
ssh. Request "n" is answered by two writes with Nagle's algorithm on: the kernel holds the second write back
until the first is acknowledged.
"""

from __future__ import annotations

import socket
import statistics
import sys
import threading
import time

REQUEST_BYTES, ANSWER_BYTES = 36, 60
WARM_UPS = 20


def serve(port: int) -> None:
    with socket.create_server(("", port)) as server:
        while True:
            threading.Thread(target=_answer, args=(server.accept()[0],), daemon=True).start()


def _answer(link: socket.socket) -> None:
    while data := link.recv(REQUEST_BYTES):
        writes = 2 if data.startswith(b"n") else 1
        for _ in range(writes):
            link.sendall(bytes(ANSWER_BYTES // writes))


def median_round_trip(link: socket.socket, count: int, kind: bytes = b"p") -> float:
    """Return the median of `count` round trips, in seconds. Some round trips before warm up the guest."""
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    request = kind.ljust(REQUEST_BYTES, b"q")
    times = [_round_trip(link, request) for _ in range(WARM_UPS + count)]
    return statistics.median(times[WARM_UPS:])


def _round_trip(link: socket.socket, request: bytes) -> float:
    started = time.perf_counter()
    link.sendall(request)
    left = ANSWER_BYTES
    while left:
        data = link.recv(left)
        if not data:
            raise ConnectionResetError("the server closed the connection")
        left -= len(data)
    return time.perf_counter() - started


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(int(sys.argv[2]))
    else:
        with socket.create_connection(("127.0.0.1", int(sys.argv[2]))) as asking:
            print(median_round_trip(asking, int(sys.argv[3])))
