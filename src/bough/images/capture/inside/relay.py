"""The remote shell of rsync in the capture machine: bough carries the streams to the captured host.

rsync starts this program with the host's name and the command for the host. The program listens on a port
of the loopback. bough connects to the port through the agent, reads the command, and carries what follows.
"""

import json
import os
import socket
import sys
import threading

PIECE = 256 * 1024


def main() -> None:
    os.set_blocking(1, True)  # rsync gives its remote shell a descriptor that does not block
    with socket.create_server(("127.0.0.1", int(sys.argv[1]))) as server:
        connection, _ = server.accept()
    connection.sendall(json.dumps(sys.argv[2:]).encode() + b"\n")
    reading = threading.Thread(target=copy_in, args=(connection,))
    reading.start()
    while data := os.read(0, PIECE):
        connection.sendall(data)
    connection.shutdown(socket.SHUT_WR)
    reading.join()  # it ends the program


def copy_in(connection: socket.socket) -> None:
    buffer = memoryview(bytearray(PIECE))
    try:
        while count := connection.recv_into(buffer):
            rest = buffer[:count]
            while rest:
                rest = rest[os.write(1, rest) :]
    except OSError:
        os._exit(1)  # rsync has ended
    os._exit(0)  # rsync waits for this program, as for ssh, before it closes the other direction


main()
