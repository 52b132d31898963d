"""Layers of container images made for tests, OCI layouts that hold them, and descriptions of trees."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import stat
import subprocess
import tarfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bough.images.oci.layers import LayerBlob

Item = tuple[tarfile.TarInfo, bytes | None]
#: A capability to bind low ports: version 2, as in an image.
BIND_SERVICE = bytes.fromhex("0100000200040000000000000000000000000000")
MTIME = 1_700_000_000


def file(name: str, content: bytes = b"", **fields: Any) -> Item:
    item = tarfile.TarInfo(name)
    item.size = len(content)
    item.mtime = MTIME
    item.mode = 0o644
    for field, value in fields.items():
        setattr(item, field, value)
    return item, content


def directory(name: str, **fields: Any) -> Item:
    return file(name, **{"type": tarfile.DIRTYPE, "mode": 0o755, **fields})[0], None


def link(name: str, target: str, **fields: Any) -> Item:
    return file(name, **{"type": tarfile.SYMTYPE, "linkname": target, **fields})[0], None


def hard_link(name: str, target: str, **fields: Any) -> Item:
    return file(name, **{"type": tarfile.LNKTYPE, "linkname": target, **fields})[0], None


def fifo(name: str, **fields: Any) -> Item:
    return file(name, **{"type": tarfile.FIFOTYPE, **fields})[0], None


def device(name: str, **fields: Any) -> Item:
    return file(name, **{"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 3, **fields})[0], None


def whiteout(name: str) -> Item:
    above, _, last = name.rpartition("/")
    return file(f"{above}/.wh.{last}" if above else f".wh.{last}")


def opaque(name: str) -> Item:
    return file(f"{name}/.wh..wh..opq")


def xattrs(**values: bytes) -> dict[str, str]:
    """Return PAX headers: `user_color=b"red"` is user.color."""
    return {
        f"SCHILY.xattr.{name.replace('_', '.', 1)}": value.decode("utf-8", "surrogateescape")
        for name, value in values.items()
    }


def pack(items: Iterable[Item], form: int = tarfile.PAX_FORMAT) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=form, errors="surrogateescape") as archive:
        for item, content in items:
            archive.addfile(item, None if content is None else io.BytesIO(content))
    return packed.getvalue()


def digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def compress_gzip(content: bytes) -> bytes:
    return gzip.compress(content, 1, mtime=0)


def compress_zstd(content: bytes) -> bytes:
    return subprocess.run(["zstd", "-q", "-c"], input=content, stdout=subprocess.PIPE, check=True).stdout


def write_layout(
    place: Path,
    archives: Sequence[bytes],
    compress: Callable[[bytes], bytes] = compress_gzip,
    program: Mapping[str, Any] | None = None,
) -> list[LayerBlob]:
    """Write an OCI layout with one image, tag "latest". Return its layers.

    Args:
        program: the object `config` of the image's configuration: Entrypoint, Env, User...
    """
    blobs = place / "blobs/sha256"
    blobs.mkdir(parents=True)

    def put(content: bytes) -> dict[str, Any]:
        (blobs / digest(content).partition(":")[2]).write_bytes(content)
        return {"digest": digest(content), "size": len(content)}

    kind = {compress_gzip: "+gzip", compress_zstd: "+zstd"}.get(compress, "")
    media = "application/vnd.oci.image"
    layers = [put(compress(archive)) | {"mediaType": f"{media}.layer.v1.tar{kind}"} for archive in archives]
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": dict(program or {}),
        "rootfs": {"type": "layers", "diff_ids": [digest(archive) for archive in archives]},
        "history": [{"created_by": "a test"} for _ in archives],
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{media}.manifest.v1+json",
        "config": put(json.dumps(config).encode()) | {"mediaType": f"{media}.config.v1+json"},
        "layers": layers,
    }
    named = {"annotations": {"org.opencontainers.image.ref.name": "latest"}}
    index = put(json.dumps(manifest).encode()) | {"mediaType": manifest["mediaType"]} | named
    (place / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [index]}))
    (place / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return [
        LayerBlob(blobs / layer["digest"][7:], layer["digest"], layer["size"], digest(archive))
        for layer, archive in zip(layers, archives, strict=True)
    ]


def describe(root: Path) -> dict[bytes, dict[str, Any]]:
    """Return path -> all that a layer can say about it, and the first path of the same file."""
    found: dict[bytes, dict[str, Any]] = {}
    first: dict[tuple[int, int], bytes] = {}
    top = os.fsencode(root)
    paths = [top]
    for above, directories, files in os.walk(top):
        paths += [os.path.join(above, name) for name in (*directories, *files)]  # noqa: PTH118 (bytes)
    for path in sorted(paths):
        name = path[len(top) + 1 :] or b"."
        about = os.lstat(path)
        found[name] = {
            "type": stat.S_IFMT(about.st_mode),
            "mode": stat.S_IMODE(about.st_mode),
            "owner": (about.st_uid, about.st_gid),
            "mtime": about.st_mtime_ns,
            "same as": name
            if stat.S_ISDIR(about.st_mode)
            else first.setdefault((about.st_dev, about.st_ino), name),
            "xattrs": {
                word: os.getxattr(path, word, follow_symlinks=False)
                for word in os.listxattr(path, follow_symlinks=False)
            },
            "content": _content(path, about),
        }
    return found


def _content(path: bytes, about: os.stat_result) -> bytes | str | None:
    if stat.S_ISLNK(about.st_mode):
        return os.readlink(path)  # noqa: PTH115 (bytes)
    if stat.S_ISREG(about.st_mode):
        with open(path, "rb") as stream:  # noqa: PTH123 (bytes)
            return hashlib.file_digest(stream, "sha256").hexdigest()
    return None
