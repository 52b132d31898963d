"""The throw-away guest of an import: its command line, its initrd, and answers of a hostile guest."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import struct
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from bough.images.linux_disk.cpio import CpioNames
from bough.images.linux_disk.disk_guest import DiskGuest, GuestTree, render_guest
from bough.images.linux_disk.guest_parts import Boot, GuestParts, _render_initrd, order_modules
from bough.images.linux_disk.magic import Kind
from bough.images.linux_disk.tree import Entry, TreeUnreadable
from bough.images.linux_disk.volumes import Volume

PARTS = GuestParts("/usr/bin/qemu-system-x86_64", "x86_64", Path("/d"), Path("/a.squashfs"))
BOOT = Boot(Path("/kernel"), Path("/initrd"))
VOLUME = Volume("2", 4096, 8192, Kind.XFS)


@pytest.mark.parametrize("writes", [False, True])
def test_the_command_line(writes: bool) -> None:
    words = render_guest(Path("/home/a,b/disk.raw"), [VOLUME], PARTS, BOOT, writes=writes)
    nodes = [json.loads(words[at + 1]) for at, word in enumerate(words) if word == "-blockdev"]
    assert [(node["node-name"], node["read-only"]) for node in nodes] == [
        ("bough-agent", True),
        ("volume0", not writes),
    ]
    assert (nodes[1]["offset"], nodes[1]["size"]) == (4096, 8192)
    assert nodes[1]["file"]["filename"] == "/home/a,b/disk.raw"
    assert "-nodefaults" in words
    assert not any("netdev" in word or "-nic" in word for word in words)


def test_modules_come_after_those_that_they_need() -> None:
    text = "a/virtio_blk.ko: a/virtio_ring.ko a/virtio.ko\na/xfs.ko.xz: b/libcrc32c.ko.xz\na/virtio.ko:\n"
    wanted = ("virtio_blk", "xfs", "builtin_one")
    expected = ["a/virtio.ko", "a/virtio_ring.ko", "a/virtio_blk.ko", "b/libcrc32c.ko.xz", "a/xfs.ko.xz"]
    assert order_modules(text, wanted) == expected


def test_the_initrd() -> None:
    names = CpioNames(lambda name: name)
    names.feed(_render_initrd(b"\x7fELF", [("xfs.ko", b"module")]))
    assert names.is_complete
    assert {"init", "reader.py", "bin/busybox", "modules/order", "modules/xfs.ko"} <= set(names.names)


def guest(*answers: Any) -> tuple[DiskGuest, BytesIO]:
    """Return the connection to a guest that gives these answers, and what it is sent."""
    stdout, sent = asyncio.StreamReader(), BytesIO()
    for answer in answers:
        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        stdout.feed_data(struct.pack(">I", len(data)) + data)
    stdout.feed_eof()
    process = SimpleNamespace(stdin=sent, stdout=stdout, pid=os.getpid())
    return DiskGuest(cast(asyncio.subprocess.Process, process)), sent


@pytest.mark.parametrize("answer", [b"{", b"[]", b"\xff", {"error": "cannot be mounted"}])
async def test_invalid_answers(answer: Any) -> None:
    with pytest.raises(TreeUnreadable):
        await guest(answer)[0].call("look", [])
    with pytest.raises(TreeUnreadable, match="has ended"):
        await guest()[0].call("look", [])


async def test_an_answer_without_end() -> None:
    connection, _ = guest()
    stdout = asyncio.StreamReader()
    stdout.feed_data(struct.pack(">I", 1 << 31))
    connection._process = cast(Any, SimpleNamespace(stdin=BytesIO(), stdout=stdout, pid=os.getpid()))
    with pytest.raises(TreeUnreadable, match="too long"):
        await connection.call("look", [])


async def test_entries_are_checked() -> None:
    told = {
        "/good": ["symlink", 0o120777, 4, 7, "x/y"],
        "/odd": ["symlink", 0o120777, 4, 7, "x\ny"],
        "/negative": ["regular", 420, -1, 7, None],
        "/short": ["regular"],
        "/not-asked": ["regular", 420, 1, 7, None],
    }
    found = await GuestTree(guest(told)[0], 0).look(["/good", "/odd", "/negative", "/short", "/missing"])
    assert found == {
        "/good": Entry("symlink", 0o777, 4, 7, "x/y"),
        "/odd": Entry("symlink", 0o777, 4, 7, None),
    }
    names = await GuestTree(guest({"/": ["a", "b/c", "..\n", 7, "d e"]})[0], 0).names(["/"])
    assert names == {"/": ["a"]}


async def test_content_is_bounded() -> None:
    data = {"data": base64.b64encode(b"x" * 9000).decode()}
    assert await GuestTree(guest(data)[0], 0).read(["/a"], 9000) == {"/a": b"x" * 9000}
    with pytest.raises(TreeUnreadable, match="larger than expected"):
        await GuestTree(guest(data, data)[0], 0).read(["/a", "/b"], 9000)
    with pytest.raises(TreeUnreadable, match="broken"):
        await GuestTree(guest({"data": 7})[0], 0).read(["/a"], 10)
    target = BytesIO()
    await GuestTree(guest(data, {"data": ""})[0], 0).copy("/a", target, 100_000)
    assert target.getvalue() == b"x" * 9000


async def test_paths_stay_inside_of_the_volume() -> None:
    connection, sent = guest({})
    await GuestTree(connection, 3).look(["/a\nb", "/etc"])
    request = json.loads(sent.getvalue()[4:])
    assert request == {"do": "look", "arguments": [["/etc"]], "root": "/volumes/3"}
