"""The OCI layout of an artifact on a disk: a directory that skopeo copies to and from a registry.

oci-layout, index.json       the marks of a layout, with one manifest
blobs/sha256/<digest>        manifest, description and chunks
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from bough.artifacts.document import MANIFEST_TYPE, Descriptor
from bough.errors import BadImage
from bough.storage import write_json

_BLOCK_BYTES = 1 << 20


def blob_path(blobs: Path, digest: str) -> Path:
    """Return the file of a blob. `digest` is "sha256:" and 64 digits, checked before."""
    return blobs / digest.replace(":", "/", 1)


def write_blob(blobs: Path, data: bytes) -> Descriptor:
    """Write a blob, unless the directory has the blob. An earlier half of a blob is replaced."""
    digest = hashlib.sha256(data).hexdigest()
    path = blobs / "sha256" / digest
    if not (path.exists() and path.stat().st_size == len(data)):
        path.write_bytes(data)
    return Descriptor(f"sha256:{digest}", len(data))


def read_blob(blobs: Path, blob: Descriptor) -> bytes:
    """Return a small blob, checked.

    Raises:
        BadImage: the file is missing, or has another content than the digest says.
    """
    try:
        descriptor = os.open(blob_path(blobs, blob.digest), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        raise BadImage(f"the artifact is incomplete: {blob.digest[:19]} is missing") from error
    with os.fdopen(descriptor, "rb") as stream:
        data = stream.read(blob.size + 1)
    if len(data) != blob.size or hashlib.sha256(data).hexdigest() != blob.digest.partition(":")[2]:
        raise BadImage(f"the artifact was altered: {blob.digest[:19]} has another content")
    return data


def check_blob(path: Path, blob: Descriptor) -> None:
    """Compare a large blob with its digest. Raises BadImage."""
    digest, left = hashlib.sha256(), blob.size + 1
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        raise BadImage(f"the artifact is incomplete: {blob.digest[:19]} is missing") from error
    with os.fdopen(descriptor, "rb", buffering=0) as stream:
        while left and (data := stream.read(min(_BLOCK_BYTES, left))):
            digest.update(data)
            left -= len(data)
    if left != 1 or digest.hexdigest() != blob.digest.partition(":")[2]:
        raise BadImage(f"the artifact was altered: {blob.digest[:19]} has another content")


def finish_layout(root: Path, manifest: Descriptor) -> None:
    """Write the marks of a layout whose blobs are complete."""
    entry = {"mediaType": MANIFEST_TYPE, "digest": manifest.digest, "size": manifest.size}
    write_json(root / "index.json", {"schemaVersion": 2, "manifests": [entry]}, mode=0o644)
    (root / "oci-layout").write_text(json.dumps({"imageLayoutVersion": "1.0.0"}))
