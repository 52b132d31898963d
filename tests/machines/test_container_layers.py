"""The layers of a container image, applied in the namespaces of a build: the same tree as umoci's."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bough.images.bootstrap import remove_build
from bough.images.oci.layers import LayerBlob, UnpackedTree, apply_layers
from bough.progress import ignore_progress
from tests.container_layers import (
    BIND_SERVICE,
    Item,
    describe,
    directory,
    fifo,
    file,
    hard_link,
    link,
    opaque,
    pack,
    whiteout,
    write_layout,
    xattrs,
)

needs_umoci = pytest.mark.skipif(shutil.which("umoci") is None, reason="umoci is not installed")

STACKS: dict[str, list[list[Item]]] = {
    "two layers": [
        [
            *(
                directory("."),
                directory("a"),
                file("a/x", b"1"),
                file("a/y", b"2", mode=0o4755, uid=7, gid=8),
            ),
            *(link("l", "a"), hard_link("h", "a/y"), fifo("p", mode=0o622)),
        ],
        [
            *(file("l/z", b"3"), whiteout("a/x"), file("b/c/d", b"q"), hard_link("b/hh", "a/y")),
            file("n", pax_headers={"mtime": "1700000000.123456789"}),
        ],
    ],
    "opaque directory": [
        [directory("d"), file("d/1"), directory("d/s"), file("d/s/2"), directory("e"), file("e/1")],
        [file("d/new", b"1"), opaque("d"), file("d/s/3"), whiteout("e"), file("e/2")],
    ],
    "whiteout after its replacement": [
        [directory("d"), file("d/1"), directory("d/s"), file("d/s/2")],
        [directory("d/s", mode=0o700), file("d/s/3"), whiteout("d")],
    ],
    "other types": [
        [directory("d"), file("d/1"), file("f"), link("k", "d")],
        [file("d", b"now a file"), directory("f"), file("f/x"), directory("k"), file("k/y")],
    ],
    "paths out of the root": [
        [
            *(file("../../up", b"1"), file("/abs", b"2"), file("a/../b", b"3"), link("out", "../../../..")),
            *(file("out/etc/passwd", b"4"), link("abs2", "/var/x"), file("abs2/y", b"5")),
            hard_link("h", "../../up"),
        ]
    ],
    "links to nothing": [
        [link("a", "/nope/deeper"), file("a/f", b"1"), link("b", "nope2/../c"), file("b/f", b"2")]
    ],
    "whiteouts of whiteouts": [
        [file("x")],
        [
            *(file(".wh..wh.x"), file(".wh..wh.plnk/1.2"), whiteout("nothing")),
            hard_link(".wh.x", ".wh..wh.x"),
        ],
    ],
    "extended attributes": [
        [
            file("c", b"1", pax_headers=xattrs(security_capability=BIND_SERVICE, user_a=b"\xff\x00b\n")),
            directory("d", pax_headers=xattrs(user_a=b"1")),
        ],
        [directory("d")],
    ],
    "odd names": [
        [
            *(file("n" * 255, b"1"), file("\udcff\udcfe", b"2"), file("é", b"3"), directory("d" * 200)),
            file("/".join(["d" * 200] * 3), b"x"),
        ]
    ],
    "empty layers": [[], [file("x")], []],
}


@pytest.fixture
def work(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "work"
    place.mkdir(mode=0o711)
    yield place
    remove_build(place)


async def unpack(work: Path, layers: list[LayerBlob]) -> UnpackedTree:
    return await apply_layers(work, layers, image="docker://example/test", report=ignore_progress)


def umoci(*words: str) -> None:
    subprocess.run(["umoci", *words], check=True)


@needs_umoci
@pytest.mark.parametrize("stack", STACKS)
async def test_tree_is_umocis(tmp_path: Path, work: Path, stack: str) -> None:
    layout, other = tmp_path / "layout", tmp_path / "umoci"
    layers = write_layout(layout, [pack(items) for items in STACKS[stack]])
    began = time.time_ns()
    umoci("raw", "unpack", "--image", f"{layout}:latest", str(other))
    tree = await unpack(work, layers)
    ours, theirs = describe(tree.path), describe(other)
    for name in ours.keys() & theirs.keys():
        # umoci gives the present time to a directory without an entry of its own, bough 1970.
        if theirs[name]["mtime"] >= began - 10**9:
            theirs[name]["mtime"] = ours[name]["mtime"]
    assert ours == theirs
    assert not tree.notes
