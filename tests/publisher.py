"""A publisher of images: a server for a directory, and a key for signatures."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class Signer:
    """A signer with its own key."""

    def __init__(self, home: Path) -> None:
        home.mkdir(mode=0o700)
        self._gpg = ["gpg", "--homedir", str(home), "--batch", "--quiet", "--passphrase", ""]
        self._gpg += ["--pinentry-mode", "loopback"]
        self._run("--quick-generate-key", "test <test@example.org>", "ed25519", "sign", "never")
        told = self._run("--with-colons", "--list-keys").decode()
        self.fingerprint = next(line.split(":")[9] for line in told.splitlines() if line.startswith("fpr"))
        self.armour = self._run("--armor", "--export").decode()

    def _run(self, *words: str, data: bytes | None = None) -> bytes:
        return subprocess.run([*self._gpg, *words], input=data, check=True, capture_output=True).stdout

    def sign(self, text: bytes) -> bytes:
        return self._run("--detach-sign", data=text)

    def clear_sign(self, text: bytes) -> bytes:
        return self._run("--clear-sign", data=text)

    def end(self) -> None:
        subprocess.run(["gpgconf", "--homedir", self._gpg[2], "--kill", "all"], check=False)


@contextmanager
def serve_directory(place: Path) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    listener = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(place)))
    thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.server_port}"
    finally:
        listener.shutdown()
        listener.server_close()
        thread.join()
