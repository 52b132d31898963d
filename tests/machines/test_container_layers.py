"""The layers of a container image, applied in the namespaces of a build: the same tree as umoci's, and, for
layers as tools write them, as podman's.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bough.errors import BadImage
from bough.images.bootstrap import remove_build
from bough.images.namespace import start_inside
from bough.images.oci.inside.failure import Failure
from bough.images.oci.layers import (
    TREE,
    LayerBlob,
    UnpackedTree,
    UnpackLimits,
    apply_layers,
    render_program,
)
from bough.progress import ignore_progress
from bough.qemu.subprocesses import end_subprocess
from tests.container_layers import (
    BIND_SERVICE,
    Item,
    describe,
    digest,
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
from tests.unit.test_layer_changes import mine, names, unpack_blobs

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

#: Layers as tools write them: each directory has an entry, before its content.
WRITTEN: list[list[Item]] = [
    [
        *(directory("."), directory("a", mode=0o2775, gid=50), file("a/x", b"1"), directory("a/s")),
        *(file("a/s/setuid", b"2", mode=0o4755, uid=7, gid=8), hard_link("a/same", "a/x")),
        *(link("l", "a"), fifo("p", mode=0o622), directory("o"), file("o/1"), directory("gone")),
        file("c", b"1", pax_headers=xattrs(security_capability=BIND_SERVICE, user_a=b"\xff\x00b\n")),
        *(file("gone/x"), file("f"), directory("d"), file("d/x"), file("n" * 255), file("\udcff\udcfe")),
    ],
    [
        *(
            directory("."),
            directory("a", mode=0o700),
            whiteout("a/x"),
            file("a/new", mtime=7),
            whiteout("gone"),
        ),
        *(directory("o"), opaque("o"), file("o/2"), directory("f"), file("f/x"), file("d", b"a file now")),
        file("t", pax_headers={"mtime": "1700000000.123456789"}),
    ],
]


@pytest.fixture
def work(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "work"
    place.mkdir(mode=0o711)
    yield place
    remove_build(place)


async def unpack(work: Path, layers: list[LayerBlob], limits: UnpackLimits | None = None) -> UnpackedTree:
    image = "docker://example/test"
    return await apply_layers(work, layers, image=image, report=ignore_progress, limits=limits)


def run(*words: str) -> str:
    return subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout


def ignore_new_times(
    ours: dict[bytes, dict[str, Any]], theirs: dict[bytes, dict[str, Any]], began_ns: int
) -> None:
    """Others give the present time to a directory without an entry of its own, bough 1970."""
    for name in ours.keys() & theirs.keys():
        if theirs[name]["mtime"] >= began_ns - 10**9:
            theirs[name]["mtime"] = ours[name]["mtime"]


@needs_umoci
@pytest.mark.parametrize("stack", STACKS)
async def test_tree_is_umocis(tmp_path: Path, work: Path, stack: str) -> None:
    layout, other = tmp_path / "layout", tmp_path / "umoci"
    layers = write_layout(layout, [pack(items) for items in STACKS[stack]])
    began_ns = time.time_ns()
    run("umoci", "raw", "unpack", "--image", f"{layout}:latest", str(other))
    tree = await unpack(work, layers)
    ours, theirs = describe(tree.path), describe(other)
    ignore_new_times(ours, theirs, began_ns)
    assert ours == theirs
    assert not tree.notes


def paths() -> st.SearchStrategy[str]:
    return st.lists(st.sampled_from("abc"), min_size=1, max_size=3).map("/".join)


def stacks() -> st.SearchStrategy[list[list[Item]]]:
    """Return layers that get in each other's way: few names, all types, links to anywhere."""
    modes = st.sampled_from([0o755, 0o700, 0o1777, 0o2755])
    targets = st.one_of(
        paths(), paths().map("/{}".format), paths().map("../{}".format), st.sampled_from(["..", "/"])
    )
    item = st.one_of(
        st.builds(file, paths(), st.binary(max_size=3)),
        st.builds(directory, paths(), mode=modes),
        st.builds(link, paths(), targets),
        st.builds(hard_link, paths(), paths()),
        st.builds(whiteout, paths()),
        st.builds(opaque, paths()),
        st.builds(fifo, paths()),
    )
    return st.lists(st.lists(item, max_size=6), min_size=1, max_size=4)


@needs_umoci
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(stacks())
def test_any_tree_is_umocis(tmp_path_factory: pytest.TempPathFactory, stack: list[list[Item]]) -> None:
    """The program alone, without its jail. What umoci refuses may be a tree here: it ends well either way."""
    place = tmp_path_factory.mktemp("stack")
    archives = [pack(map(mine, items)) for items in stack]
    write_layout(place / "layout", archives, bytes)
    words = ["umoci", "raw", "unpack", "--image", f"{place}/layout:latest", f"{place}/theirs"]
    others = subprocess.run(words, capture_output=True, check=False)
    (place / "ours").mkdir()
    try:
        unpack_blobs(place / "ours", [(archive, digest(archive)) for archive in archives])
    except Failure:
        assert others.returncode != 0
        return
    if others.returncode == 0:
        ours, theirs = describe(place / "ours"), describe(place / "theirs")
        for about in (*ours.values(), *theirs.values()):
            if stat.S_ISDIR(about["type"]):
                about["mtime"] = 0
        assert ours.keys() == theirs.keys()
        assert all(ours[name] == theirs[name] for name in ours if name != b".")


@pytest.mark.skipif(
    shutil.which("podman") is None or os.geteuid() != 0, reason="needs podman, and root for its mounts"
)
async def test_tree_of_written_layers_is_podmans(tmp_path: Path, work: Path) -> None:
    layers = write_layout(tmp_path / "layout", [pack(items) for items in WRITTEN])
    short = tempfile.mkdtemp(dir="/tmp")  # podman's limit is 50 characters
    store = ["podman", "--root", f"{tmp_path}/store", "--runroot", short]
    began_ns = time.time_ns()
    image = run(*store, "pull", "-q", f"oci:{tmp_path}/layout:latest").strip()
    try:
        theirs = describe(Path(run(*store, "image", "mount", image).strip()))
    finally:
        run(*store, "image", "unmount", "-f", image)
        run(*store, "rmi", "-f", image)
        shutil.rmtree(short)
    ours = describe((await unpack(work, layers)).path)
    ignore_new_times(ours, theirs, began_ns)
    theirs[b"."]["mode"] = ours[b"."]["mode"]  # podman 4.3 gives every root directory 0555
    assert ours == theirs


async def test_refusal_names_layer_and_entry(tmp_path: Path, work: Path) -> None:
    layers = write_layout(tmp_path / "layout", [pack([file("a")]), pack([hard_link("b\x1b", "missing")])])
    with pytest.raises(BadImage) as caught:
        await unpack(work, layers)
    assert caught.value.message == (
        "docker://example/test cannot be unpacked: layer 2 of 2, entry 'b\\x1b': "
        "a hard link leads to missing, which is missing"
    )
    assert (caught.value.layer, caught.value.digest) == (2, layers[1].digest)


async def test_wrong_digest_is_refused(tmp_path: Path, work: Path) -> None:
    layer = write_layout(tmp_path / "layout", [pack([file("a")])])[0]
    content = bytearray(layer.path.read_bytes())
    content[10] ^= 1
    layer.path.write_bytes(content)
    with pytest.raises(BadImage, match="layer 1 of 1.*(digest|damaged)"):
        await unpack(work, [layer])


async def test_limits(tmp_path: Path, work: Path) -> None:
    layers = write_layout(tmp_path / "layout", [pack([file("a", bytes(3 << 20))])])
    with pytest.raises(BadImage, match="unpack to more bytes than allowed"):
        await unpack(work, layers, UnpackLimits(most_bytes=1 << 20))
    with pytest.raises(BadImage, match="has 1 layers; at most 0"):
        await unpack(work, layers, UnpackLimits(most_layers=0))


async def test_the_program_sees_the_tree_alone(tmp_path: Path, work: Path) -> None:
    """A program in its place can write to the tree, and to nothing else, and has no network."""
    await unpack(work, write_layout(tmp_path / "layout", [pack([file("a")])]))
    argv = render_program()
    argv[2] = 'exec "$@"'
    script = (
        "touch /tree/b && ! touch /program/x && ! touch /usr/x && ! touch /x"
        " && [ ! -e /mnt ] && [ ! -e /home ] && ! chroot / true && ! mknod /tree/null c 1 3"
        " && python3 -c 'import socket; print(*[name for _, name in socket.if_nameindex()])'"
    )
    argv[argv.index("--") + 1 :] = ["sh", "-c", f"exec 2>/dev/null; {script}"]
    process = await start_inside(work, argv, {})
    assert process.stdout is not None
    said = await process.stdout.read()
    await end_subprocess(process)
    assert (said, names(work / TREE)) == (b"lo\n", {"a", "b"})


async def test_cancellation_ends_the_program(tmp_path: Path, work: Path) -> None:
    layers = write_layout(tmp_path / "layout", [pack([file(f"f{number}") for number in range(20_000)])])
    started = asyncio.Event()
    call = asyncio.create_task(apply_layers(work, layers, image="test", report=lambda _: started.set()))
    await started.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    count = len(list((work / TREE).iterdir()))
    await asyncio.sleep(0.2)
    assert len(list((work / TREE).iterdir())) == count
