"""Small disk images in every format, and servers that misbehave."""

from __future__ import annotations

import hashlib
import io
import random
import subprocess
import tarfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

MIB = 1024 * 1024
DISK_MIB = 24
#: qemu-img's names of the formats that bough reads, with their options.
FORMATS = {
    "raw": ("raw", ()),
    "qcow2": ("qcow2", ()),
    "qcow2-compressed": ("qcow2", ("-c",)),
    "vmdk": ("vmdk", ()),
    "vmdk-stream": ("vmdk", ("-o", "subformat=streamOptimized")),
    "vdi": ("vdi", ()),
    "vdi-static": ("vdi", ("-o", "static=on")),
    "vhdx": ("vhdx", ()),
}
PACKERS = {
    "gz": ("gzip", "-c"),
    "xz": ("xz", "-c", "-1"),
    "zst": ("zstd", "-c", "-q"),
    "bz2": ("bzip2", "-c"),
}


def make_disk(path: Path, size_mib: int = DISK_MIB) -> Path:
    """Make a raw disk with a boot sector and some MiB of incompressible data, up to the last byte."""
    random_bytes = random.Random(1).randbytes
    with path.open("wb") as stream:
        stream.truncate(size_mib * MIB)
        stream.write(b"\xeb\x3c\x90".ljust(510, b"\0") + b"\x55\xaa")
        for place in range(1, size_mib, 7):
            stream.seek(place * MIB)
            stream.write(random_bytes(MIB // 2))
        stream.seek(size_mib * MIB - 4096)
        stream.write(random_bytes(4096))
    return path


def convert(disk: Path, name: str, target: Path) -> Path:
    format, options = FORMATS[name]
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", format, *options, disk, target], check=True)
    return target


def pack(disk: Path, name: str, target: Path) -> Path:
    with disk.open("rb") as source, target.open("wb") as stream:
        subprocess.run(PACKERS[name], stdin=source, stdout=stream, check=True)
    return target


OVF = """<?xml version="1.0"?>
<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1">
 <References>{files}</References>
 <DiskSection><Info>disks</Info>{disks}</DiskSection>
</Envelope>
"""


def describe(*names: str) -> bytes:
    files = "".join(f'<File ovf:id="f{i}" ovf:href="{name}"/>' for i, name in enumerate(names))
    disks = "".join(f'<Disk ovf:diskId="d{i}" ovf:fileRef="f{i}"/>' for i, _ in enumerate(names))
    return OVF.format(files=files, disks=disks).encode()


def make_ova(path: Path, files: dict[str, bytes], *, manifest: bool = True) -> Path:
    """Make a tar of `files`, in their order, with their digests."""
    if manifest:
        lines = [f"SHA256({name})= {hashlib.sha256(data).hexdigest()}\n" for name, data in files.items()]
        files = {**files, "machine.mf": "".join(lines).encode()}
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


@dataclass
class Server:
    """A server with chosen content and faults; `requests` holds the Range headers of its clients."""

    url: str
    content: bytes
    etag: str | None = '"one"'
    ranges: bool = True
    break_after: list[int] = field(default_factory=list)
    stall_after: int | None = None
    told_length: int | None = None
    redirects: int | str = 0
    status: int = 200
    changes_to: bytes | None = None
    requests: list[str | None] = field(default_factory=list)


@contextmanager
def serve(content: bytes, **settings: Any) -> Iterator[Server]:
    server: Server

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            server.requests.append(self.headers.get("Range"))
            self.close_connection = True
            if isinstance(server.redirects, str) or server.redirects:
                target = server.redirects
                if isinstance(target, int):
                    server.redirects = target - 1
                    target = f"{server.url}?{target}"
                self.send_response(302)
                self.send_header("Location", target)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            if server.status != 200:
                self.send_error(server.status)
                return
            self._send_content()

        def _send_content(self) -> None:
            data, first = server.content, 0
            wanted = self.headers.get("Range")
            is_same = self.headers.get("If-Range") in (None, server.etag)
            if wanted and server.ranges and is_same:
                first = int(wanted.removeprefix("bytes=").partition("-")[0])
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
            else:
                self.send_response(200)
            told = server.told_length if server.told_length is not None else len(data)
            self.send_header("Content-Length", str(told - first))
            if server.etag:
                self.send_header("ETag", server.etag)
            self.end_headers()
            data = data[first:]
            if server.break_after:
                data = data[: server.break_after.pop(0)]
                if server.changes_to is not None:
                    server.content, server.etag = server.changes_to, '"two"'
            if server.stall_after is not None:
                self.wfile.write(data[: server.stall_after])
                time.sleep(3)
                return
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: Any) -> None:
            pass

    listener = Quiet(("127.0.0.1", 0), Handler)
    server = Server(f"http://127.0.0.1:{listener.server_port}/disk.img", content, **settings)
    thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        listener.shutdown()
        listener.server_close()
        thread.join()
