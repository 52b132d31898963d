"""Manifests and indexes of container images, also hostile ones."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bough.errors import BadImage, NotFound
from bough.images.oci.manifest import (
    ContainerIndex,
    ContainerManifest,
    check_digest,
    check_image,
    digest_of,
    read_manifest,
)

A, B = ("sha256:" + digits * 32 for digits in ("ab", "cd"))
OCI, DOCKER = "application/vnd.oci.image", "application/vnd.docker"
NAME = "docker://docker.io/library/nginx:latest"


def blob(kind: str = f"{OCI}.layer.v1.tar+gzip", digest: str = A, size: Any = 5) -> dict[str, Any]:
    return {"mediaType": kind, "digest": digest, "size": size}


def manifest(**changes: Any) -> dict[str, Any]:
    config = blob(f"{OCI}.config.v1+json", B)
    kind = f"{OCI}.manifest.v1+json"
    return {"schemaVersion": 2, "mediaType": kind, "config": config, "layers": [blob()]} | changes


def read(data: Any) -> ContainerManifest | ContainerIndex:
    return read_manifest(json.dumps(data).encode(), NAME)


def read_image(**changes: Any) -> ContainerManifest:
    found = read(manifest(**changes))
    assert isinstance(found, ContainerManifest)
    return found


def index(*entries: Any, kind: str | None = f"{OCI}.index.v1+json") -> dict[str, Any]:
    return {"schemaVersion": 2, "manifests": list(entries)} | ({"mediaType": kind} if kind else {})


def entry(arch: str, digest: str = A, **platform: Any) -> dict[str, Any]:
    platform = {"architecture": arch, "os": "linux"} | platform
    return blob(f"{OCI}.manifest.v1+json", digest) | {"platform": platform}


def test_an_image() -> None:
    text = json.dumps(manifest(layers=[blob(size=7), blob(digest=B, size=2), blob(size=7)])).encode()
    found = read_manifest(text, NAME)
    assert isinstance(found, ContainerManifest)
    assert found.digest == digest_of(text)
    assert (found.is_image, found.size, len(found.layers)) == (True, 9, 3)
    check_image(found, NAME)


@pytest.mark.parametrize("kind", [f"{DOCKER}.distribution.manifest.v2+json", None])
def test_dockers_form_and_none(kind: str | None) -> None:
    layers = [blob(f"{DOCKER}.image.rootfs.diff.tar.gzip")]
    check_image(
        read_image(mediaType=kind, config=blob(f"{DOCKER}.container.image.v1+json"), layers=layers), NAME
    )


def test_an_index() -> None:
    found = read(
        index(
            entry("unknown", B, os="unknown"),
            entry("amd64", B, os="windows"),
            entry("arm", variant="v7"),
            entry("arm64", B, variant="v8"),
            entry("amd64"),
            entry("amd64", B),
        )
    )
    assert isinstance(found, ContainerIndex)
    assert found.choose("x86_64", NAME) == A
    assert found.choose("aarch64", NAME) == B
    with pytest.raises(NotFound, match="for riscv64") as told:
        found.choose("riscv64", NAME)
    assert told.value.hint == "available: arm/v7, arm64/v8, amd64"
    assert isinstance(read(index(entry("amd64"), kind=None)), ContainerIndex)
    assert isinstance(read(index(kind=f"{DOCKER}.distribution.manifest.list.v2+json")), ContainerIndex)


def test_an_artifact() -> None:
    found = read_image(config=blob("application/vnd.oci.empty.v1+json"), artifactType="example/x", layers=[])
    assert not found.is_image
    with pytest.raises(BadImage, match="an artifact of the type 'example/x'"):
        check_image(found, NAME)


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        (f"{DOCKER}.image.rootfs.foreign.diff.tar.gzip", "at an address of its vendor"),
        (f"{OCI}.layer.nondistributable.v1.tar+gzip", "at an address of its vendor"),
        (f"{OCI}.layer.v1.tar+gzip+encrypted", "is encrypted"),
        (f"{OCI}.layer.v1.erofs", "has an unknown type"),
    ],
)
def test_layers_that_bough_does_not_unpack(kind: str, told: str) -> None:
    with pytest.raises(BadImage, match=f"layer 2 of .* {told}"):
        check_image(read_image(layers=[blob(), blob(kind)]), NAME)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ({"schemaVersion": 1, "fsLayers": []}, "schema 1"),
        ({"schemaVersion": 3}, "unknown type"),
        (manifest(mediaType="text/html"), "unknown type: 'text/html'"),
        (manifest(mediaType=5), "unknown type: 5"),
        (manifest(config=None), "names no configuration"),
        (manifest(layers=None), "expected a list of blobs"),
        (manifest(layers=["x"]), "expected a list of blobs"),
        (manifest(layers=[blob()] * 1001), "more than the limit of 1000"),
        (manifest(layers=[blob(digest="sha256:../../etc")]), "64 hexadecimal digits"),
        (manifest(layers=[blob(digest="md5:" + "ab" * 16)]), "64 hexadecimal digits"),
        (manifest(layers=[blob(size=-1)]), "expected a size"),
        (manifest(layers=[blob(size=True)]), "expected a size"),
        (manifest(layers=[blob(size=1 << 60)]), "expected a size"),
        (manifest(config=blob("a\nb")), "expected a media type"),
        (index("x"), "expected a list of blobs"),
        ([], "is not a JSON object"),
    ],
)
def test_hostile_manifests(data: Any, told: str) -> None:
    with pytest.raises(BadImage, match=told):
        read(data)


def test_content_with_another_digest() -> None:
    check_digest(b"x", digest_of(b"x"), "it")
    with pytest.raises(BadImage, match=f"it has the digest {digest_of(b'y')}, and not {A}"):
        check_digest(b"y", A, "it")
