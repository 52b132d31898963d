"""Container images made for tests, and Debian's docker-registry on 127.0.0.1 to publish them."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.container_layers import compress_gzip, digest

OCI = "application/vnd.oci.image"
DOCKER = "application/vnd.docker"
#: User "me" with the password "secret".
_HTPASSWD = "me:$2b$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n"
#: The auth file of that user, for skopeo.
AUTH = "bWU6c2VjcmV0"

Blob = dict[str, Any]


class Images:
    """Blobs of images, and their names. Each name is one manifest or index."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.named: dict[str, Blob] = {}

    def put(self, content: bytes, media_type: str) -> Blob:
        self.blobs[digest(content)] = content
        return {"mediaType": media_type, "digest": digest(content), "size": len(content)}

    def image(
        self,
        layers: Sequence[bytes],
        config: Mapping[str, Any] | None = None,
        *,
        name: str = "",
        docker: bool = False,
        **more: Any,
    ) -> Blob:
        """Add an image of uncompressed layers. `more` overrides parts of its configuration."""
        whole = {
            "architecture": "amd64",
            "os": "linux",
            "config": dict(config or {}),
            "rootfs": {"type": "layers", "diff_ids": [digest(layer) for layer in layers]},
        } | more
        kinds = (
            (f"{DOCKER}.container.image.v1+json", f"{DOCKER}.image.rootfs.diff.tar.gzip")
            if docker
            else (f"{OCI}.config.v1+json", f"{OCI}.layer.v1.tar+gzip")
        )
        manifest = {
            "schemaVersion": 2,
            "mediaType": f"{DOCKER}.distribution.manifest.v2+json" if docker else f"{OCI}.manifest.v1+json",
            "config": self.put(json.dumps(whole).encode(), kinds[0]),
            "layers": [self.put(compress_gzip(layer), kinds[1]) for layer in layers],
        }
        return self.manifest(manifest, name=name)

    def manifest(self, content: Mapping[str, Any], *, name: str = "") -> Blob:
        blob = self.put(json.dumps(content).encode(), content["mediaType"])
        if name:
            self.named[name] = blob
        return blob

    def index(self, images: Mapping[str, Blob], *, name: str = "") -> Blob:
        """Add an index: architecture -> image."""
        entries = [
            blob | {"platform": {"architecture": arch, "os": "linux"}} for arch, blob in images.items()
        ]
        kind = f"{OCI}.index.v1+json"
        return self.manifest({"schemaVersion": 2, "mediaType": kind, "manifests": entries}, name=name)

    def write_layout(self, place: Path) -> Path:
        """Write an OCI layout with all names."""
        blobs = place / "blobs/sha256"
        blobs.mkdir(parents=True)
        for name, content in self.blobs.items():
            (blobs / name.partition(":")[2]).write_bytes(content)
        entries = [
            blob | {"annotations": {"org.opencontainers.image.ref.name": name}}
            for name, blob in self.named.items()
        ]
        (place / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": entries}))
        (place / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        return place


class Registry:
    """A running docker-registry.

    Attributes:
        host: "127.0.0.1:PORT".
    """

    def __init__(self, place: Path, host: str) -> None:
        self.host = host
        self._place = place

    def push(self, images: Images, repository: str, *, headers: Mapping[str, str] | None = None) -> None:
        """Publish all names of `images` as tags. Manifests below an index are published by digest."""
        base = f"http://{self.host}/v2/{repository}"
        given = dict(headers or {})
        manifests = {}
        for name, content in images.blobs.items():
            kind = _manifest_type(content)
            if kind:
                manifests[name] = (content, kind)
                continue
            with _send("POST", f"{base}/blobs/uploads/", headers=given) as answer:
                place = answer.headers["Location"]
            mark = "&" if "?" in place else "?"
            binary = given | {"Content-Type": "application/octet-stream"}
            with _send("PUT", f"{place}{mark}digest={name}", content, headers=binary):
                pass
        for name, (content, kind) in sorted(manifests.items(), key=lambda one: b'"manifests"' in one[1][0]):
            tags = [tag for tag, blob in images.named.items() if blob["digest"] == name]
            for reference in (name, *tags):
                with _send(
                    "PUT", f"{base}/manifests/{reference}", content, headers=given | {"Content-Type": kind}
                ):
                    pass

    @property
    def root(self) -> Path:
        return self._place / "docker/registry/v2"

    def blobs(self) -> dict[str, Path]:
        """Return the files of all blobs, manifests included, by their digits."""
        return {path.parent.name: path for path in self.root.glob("blobs/sha256/*/*/data")}

    def blob(self, name: str) -> Path:
        """Return the file of a blob, to damage it."""
        digits = name.partition(":")[2]
        return self._place / f"docker/registry/v2/blobs/sha256/{digits[:2]}/{digits}/data"


def _manifest_type(content: bytes) -> str:
    try:
        data = json.loads(content)
    except ValueError:
        return ""
    return str(data.get("mediaType", "")) if isinstance(data, dict) and "schemaVersion" in data else ""


def _send(method: str, url: str, data: bytes | None = None, *, headers: Mapping[str, str]) -> Any:
    return urllib.request.urlopen(urllib.request.Request(url, data, dict(headers), method=method), timeout=30)


def has_registry() -> bool:
    return None not in map(shutil.which, ("docker-registry", "skopeo"))


@contextmanager
def serve_registry(place: Path, *, with_login: bool = False) -> Iterator[Registry]:
    """Run a registry until the end of the block. Its blobs are below `place`."""
    place.mkdir(exist_ok=True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        host = f"127.0.0.1:{free.getsockname()[1]}"
    lines = [
        "version: 0.1",
        f"storage: {{filesystem: {{rootdirectory: {place}/data}}}}",
        f"http: {{addr: '{host}', secret: of-this-test}}",
        "log: {level: error, accesslog: {disabled: true}}",
    ]
    if with_login:
        (place / "htpasswd").write_text(_HTPASSWD)
        lines.append(f"auth: {{htpasswd: {{realm: test, path: {place}/htpasswd}}}}")
    (place / "config.yml").write_text("\n".join(lines) + "\n")
    with (place / "log").open("wb") as log:
        argv = ["docker-registry", "serve", str(place / "config.yml")]
        process = subprocess.Popen(argv, stdout=log, stderr=log)
    try:
        _wait_answer(host, process, place / "log")
        yield Registry(place / "data", host)
    finally:
        process.kill()
        process.wait()


def _wait_answer(host: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            with urllib.request.urlopen(f"http://{host}/v2/", timeout=5):
                return
        except urllib.error.HTTPError:
            return  # it asks for a login
        except OSError:
            assert process.poll() is None, log.read_text()
            time.sleep(0.05)
    raise AssertionError(f"no registry at {host}: {log.read_text()}")


class Broken:
    """A server in front of a registry, with faults.

    Attributes:
        held: digest of a blob of which only one half arrives, and then nothing.
        cut: digest of a blob whose connection breaks after one half.
        asked: digests of the blobs that clients asked for.
    """

    def __init__(self, host: str) -> None:
        self.host = host
        self.held = self.cut = ""
        self.asked: list[str] = []


@contextmanager
def serve_broken(host: str) -> Iterator[Broken]:
    """Serve the registry at `host` with faults until the end of the block."""
    end = threading.Event()

    class Between(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            try:
                with urllib.request.urlopen(
                    urllib.request.Request(f"http://{host}{self.path}", headers=dict(self.headers)),
                    timeout=30,
                ) as answer:
                    self._pass_on(answer.status, answer.headers, answer.read())
            except urllib.error.HTTPError as error:
                self._pass_on(error.code, error.headers, error.read())

        def _pass_on(self, status: int, headers: Any, content: bytes) -> None:
            name = self.path.rpartition("/")[2]
            if "/blobs/" in self.path:
                broken.asked.append(name)
            self.send_response(status)
            for key, value in headers.items():
                if key.lower() not in ("transfer-encoding", "connection"):
                    self.send_header(key, value)
            self.end_headers()
            stays_half = name in (broken.held, broken.cut)
            self.wfile.write(content[: len(content) // 2] if stays_half else content)
            if name == broken.held:
                end.wait(60)
            self.close_connection = True

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Between)
    broken = Broken(f"127.0.0.1:{server.server_port}")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield broken
    finally:
        end.set()
        server.shutdown()
        server.server_close()
