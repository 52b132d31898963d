"""Target for what a registry sends: manifests, indexes, configurations, and skopeo's errors."""

from __future__ import annotations

import contextlib
import json
from typing import Any

from bough.errors import BadImage, InvalidInput, NotFound
from bough.images.oci.config import read_config
from bough.images.oci.manifest import ContainerIndex, check_image, read_manifest
from bough.images.oci.skopeo import unescape
from bough.images.oci.troubles import translate
from bough.spec.container import Container
from bough.spec.container_name import parse_container_name

_DIGEST = "sha256:" + "ab" * 32
_KIND = "application/vnd.oci.image."
_BLOB = {"mediaType": f"{_KIND}layer.v1.tar+gzip", "digest": _DIGEST, "size": 1}
#: Valid documents, whose values the fuzzer replaces.
_DOCUMENTS: tuple[dict[str, Any], ...] = (
    {
        "architecture": "amd64",
        "os": "linux",
        "created": "2024-05-06T07:08:09.123456789Z",
        "rootfs": {"diff_ids": [_DIGEST]},
        "config": {
            "Entrypoint": ["a"],
            "Cmd": ["b"],
            "Env": ["A=b"],
            "User": "a:b",
            "WorkingDir": "/a",
            "StopSignal": "SIGTERM",
            "ExposedPorts": {"80/tcp": {}},
            "Volumes": {"/v": {}},
            "Labels": {"a": "b"},
            "Shell": ["sh"],
            "Healthcheck": {"Test": ["CMD-SHELL", "x"], "Interval": 1, "Timeout": 1, "Retries": 1},
        },
    },
    {
        "schemaVersion": 2,
        "mediaType": f"{_KIND}manifest.v1+json",
        "config": _BLOB | {"mediaType": f"{_KIND}config.v1+json"},
        "layers": [_BLOB, _BLOB],
        "annotations": {"a": "b"},
    },
    {
        "schemaVersion": 2,
        "mediaType": f"{_KIND}index.v1+json",
        "manifests": [
            _BLOB
            | {"mediaType": f"{_KIND}manifest.v1+json", "platform": {"architecture": "amd64", "os": "linux"}}
        ],
    },
)
_ODD: tuple[Any, ...] = (
    *(
        None,
        True,
        -1,
        0,
        1.5,
        1 << 70,
        "",
        "\0",
        "a\nb",
        "=",
        "/",
        "../..",
        "99999",
        "1-65535/udp",
        "SIGRTMIN+30",
    ),
    *([], ["NONE"], ["CMD"], [[]], {}, {"a": {}}, {"": ""}, "a" * 5000, "0001-01-01", "9999-12-31T23:59:59"),
)


def fuzz_container(data: bytes) -> None:
    """Replace values of valid documents by odd values. Each result is an image or a sentence."""
    choice, rest = (data[:1] or b"\0")[0], data[1:]
    document = json.loads(json.dumps(_DOCUMENTS[choice % len(_DOCUMENTS)]))
    for at in range(0, len(rest) - 1, 2):
        _replace(document, rest[at], rest[at + 1])
    for text in (json.dumps(document).encode(), rest):
        _read(text)
    _translate(rest.decode(errors="replace"))


def _replace(value: Any, place: int, odd: int) -> None:
    """Replace one value at any depth: `place` chooses."""
    places = list(_places(value))
    if places:
        holder, key = places[place % len(places)]
        holder[key] = json.loads(json.dumps(_ODD[odd % len(_ODD)]))


def _places(value: Any) -> Any:
    entries = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    for key, inner in list(entries):
        yield value, key
        yield from _places(inner)


def _read(text: bytes) -> None:
    with contextlib.suppress(BadImage):
        container = read_config(text, "docker://x", _DIGEST).container
        assert Container.model_validate_json(container.model_dump_json()) == container
        assert all("\0" not in word for word in (*container.entrypoint, *container.cmd, container.workdir))
        assert not container.workdir or container.workdir.startswith("/")
    with contextlib.suppress(BadImage, NotFound):
        found = read_manifest(text, "docker://x")
        if isinstance(found, ContainerIndex):
            found.choose("x86_64", "docker://x")
        else:
            check_image(found, "docker://x")


def _translate(text: str) -> None:
    name = parse_container_name("docker://r.example/app:1")
    message = unescape(text)
    assert message.isprintable()
    error = translate(message, name)
    assert error is None or len(error.message) < 1000
    for words in (text, f"docker://{text}", f"oci:{text}", f"docker-archive:/{text}"):
        with contextlib.suppress(InvalidInput):
            full = str(parse_container_name(words))
            assert str(parse_container_name(full)) == full
