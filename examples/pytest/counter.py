"""A service that counts its requests in a file: GET / answers with the number."""

import http.server
import os
from pathlib import Path

COUNT = Path("/var/lib/counter/count")


def sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


class Counter(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        number = int(COUNT.read_text()) + 1 if COUNT.exists() else 1
        new = COUNT.with_suffix(".new")
        with new.open("w") as file:
            file.write(str(number))
            file.flush()
            os.fsync(file.fileno())
        new.rename(COUNT)
        sync_directory(COUNT.parent)  # a power cut loses a rename that is not synced
        self.send_response(200)
        self.end_headers()
        self.wfile.write(f"{number}\n".encode())


if __name__ == "__main__":
    COUNT.parent.mkdir(parents=True, exist_ok=True)
    http.server.HTTPServer(("", 8000), Counter).serve_forever()
