"""The format of a project's bundle, as bough writes it and as another host may write it."""

from __future__ import annotations

import io
from typing import Any

import pytest

from bough.errors import BadBundle
from bough.hypervisor.projects.bundles import parse_manifest
from bough.project_bundle import (
    MAGIC,
    Member,
    Peeked,
    read_magic,
    read_project_manifest,
    write_member,
    write_project_bundle,
)

NETWORK = {
    "name": "back", "subnet": "10.160.1.0/24", "prefix6": "fd00:1::/64", "switch_mac": "52:54:00:00:00:01",
    "mtu": 1500,
}  # fmt: skip
MANIFEST: dict[str, Any] = {
    "created": "2026-01-01", "bough": "1.0", "name": "shop", "domain": "shop", "spec": {},
    "machines": ["db", "web-1"], "networks": [NETWORK],
}  # fmt: skip


def test_a_bundle_is_read_as_written() -> None:
    members = [[b"first", b"", b"piece"], [], [bytes(20 << 20)]]
    data = write_project_bundle(MANIFEST) + b"".join(b"".join(write_member(one)) for one in members)
    stream = io.BytesIO(data)
    assert read_magic(stream) == MAGIC
    assert read_project_manifest(stream) == MANIFEST
    for member in members:
        source, got = Member(stream), b""
        while piece := source.read(1 << 20):
            got += piece
        assert got == b"".join(member)
        assert source.read(10) == b""
    assert stream.read() == b""


def test_the_first_bytes_are_read_again() -> None:
    stream = io.BytesIO(b"0123456789")
    peeked = Peeked(read_magic(stream), stream)
    assert (peeked.read(3), peeked.read(9), peeked.read(9)) == (b"012", b"34567", b"89")
    assert read_magic(io.BytesIO(b"short")) == b"short"


def read_all(stream: io.BytesIO) -> None:
    read_magic(stream)
    read_project_manifest(stream)
    member = Member(stream)
    while member.read(10):
        pass


@pytest.mark.parametrize("cut", [9, 20, 60, -1])
def test_a_truncated_bundle(cut: int) -> None:
    data = write_project_bundle(MANIFEST) + b"".join(write_member([b"content"]))
    with pytest.raises(BadBundle, match="truncated"):
        read_all(io.BytesIO(data[:cut]))


def test_an_altered_bundle() -> None:
    data = bytearray(write_project_bundle(MANIFEST))
    data[30] ^= 1
    stream = io.BytesIO(data)
    read_magic(stream)
    with pytest.raises(BadBundle, match="checksum"):
        read_project_manifest(stream)
    with pytest.raises(BadBundle, match="piece of a machine is too large"):
        Member(io.BytesIO(b"\xff\xff\xff\xff")).read(1)
    stream = io.BytesIO(MAGIC + b"\x02\0\0\0\0\0\0\0")
    read_magic(stream)
    with pytest.raises(BadBundle, match="has version 2"):
        read_project_manifest(stream)


@pytest.mark.parametrize(
    "change",
    [
        {"name": "../x"},
        {"domain": "Shop"},
        {"machines": []},
        {"machines": ["db", "db"]},
        {"machines": ["db", "a/b"]},
        {"machines": 7},
        {"networks": [NETWORK, NETWORK]},
        {"networks": [{**NETWORK, "subnet": "8.8.8.0/24"}]},
        {"networks": [{**NETWORK, "subnet": "x"}]},
        {"networks": [NETWORK, {**NETWORK, "name": "front"}]},
        {"networks": [{**NETWORK, "prefix6": "2001:db8::/64"}]},
        {"networks": [{**NETWORK, "prefix6": "fd00::/48"}]},
        {"networks": [{**NETWORK, "switch_mac": "01:00:5e:00:00:01"}]},
        {"networks": [{**NETWORK, "mtu": 1 << 20}]},
        {"networks": [{**NETWORK, "name": "uplink/"}]},
        {"spec": []},
    ],
)
def test_a_hostile_manifest(change: dict[str, Any]) -> None:
    parse_manifest(MANIFEST)
    with pytest.raises(BadBundle):
        parse_manifest({**MANIFEST, **change})
