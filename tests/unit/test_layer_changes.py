"""Layers applied to a tree by the program of images/oci/inside, without namespaces: hostile and damaged ones,
and stacks made by hypothesis.
"""

from __future__ import annotations

import io
import os
import stat
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bough.images.oci.inside.failure import BAD_LAYER, TOO_MUCH, Failure, show
from bough.images.oci.inside.layer_changes import Notes
from bough.images.oci.inside.layer_stream import Allowance, Blob, LayerStream
from bough.images.oci.inside.tar_entries import Entry
from bough.images.oci.inside.tree import MOST_DEPTH, split_path
from bough.images.oci.inside.unpack import Reporter, apply_all
from tests.container_layers import (
    MTIME,
    Item,
    compress_gzip,
    compress_zstd,
    describe,
    device,
    digest,
    directory,
    file,
    hard_link,
    link,
    opaque,
    pack,
    whiteout,
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    place = tmp_path / "root"
    place.mkdir()
    return place


def mine(item: Item) -> Item:
    """Give an item to the test's user: an ordinary user can give a file to nobody else."""
    item[0].uid, item[0].gid = os.geteuid(), os.getegid()
    return item


def unpack_blobs(root: Path, blobs: Sequence[tuple[bytes, str]], **limits: int) -> dict[str, Any]:
    """Apply blobs with the digests of their archives."""
    layers, opened = [], []
    for content, diff_id in blobs:
        descriptor = os.memfd_create("blob")
        os.write(descriptor, content)
        os.lseek(descriptor, 0, os.SEEK_SET)
        opened.append(descriptor)
        layers.append(
            {"descriptor": descriptor, "digest": digest(content), "size_bytes": len(content)}
            | {"diff_id": diff_id}
        )
    request = {"layers": layers, "most_bytes": 1 << 30, "most_entries": 10_000, **limits}
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return apply_all(request, descriptor, Reporter())
    finally:
        for number in opened:
            os.close(number)


def unpack(root: Path, *layers: Sequence[Item], **limits: int) -> dict[str, Any]:
    archives = [pack(map(mine, items)) for items in layers]
    return unpack_blobs(root, [(archive, digest(archive)) for archive in archives], **limits)


def names(root: Path) -> set[str]:
    return {os.fsdecode(name) for name in describe(root)} - {"."}


# -- whiteouts and replacements -------------------------------------------------------------------------


def test_whiteout_spares_the_files_of_its_own_layer(root: Path) -> None:
    unpack(
        root,
        [directory("d"), file("d/old"), directory("d/s"), file("d/s/old")],
        [file("d/s/new"), whiteout("d"), whiteout("d/s/new")],
    )
    assert names(root) == {"d", "d/s", "d/s/new"}


@pytest.mark.parametrize("last", [True, False])
def test_opaque_directory_hides_lower_files_in_any_order(root: Path, last: bool) -> None:
    upper = [file("d/new"), file("d/s/new")]
    unpack(
        root,
        [directory("d"), file("d/old"), directory("d/s"), file("d/s/old"), file("other")],
        [*upper, opaque("d")] if last else [opaque("d"), *upper],
    )
    assert names(root) == {"d", "d/new", "d/s", "d/s/new", "other"}


def test_whiteout_may_be_a_hard_link(root: Path) -> None:
    unpack(root, [file("a"), file("b")], [whiteout("a"), hard_link(".wh.b", ".wh.a")])
    assert names(root) == set()


def test_whiteout_through_a_link_removes_the_file_in_the_linked_directory(root: Path) -> None:
    unpack(root, [directory("usr/lib"), file("usr/lib/x"), link("lib", "usr/lib")], [whiteout("lib/x")])
    assert names(root) == {"usr", "usr/lib", "lib"}


@pytest.mark.parametrize("name", [".wh.", ".wh..", ".wh...", "d/.wh..."])
def test_whiteout_without_a_file_is_refused(root: Path, name: str) -> None:
    (root.parent / "beside").write_text("")
    with pytest.raises(Failure, match="names no file"):
        unpack(root, [file("d/x")], [file(name)])
    assert (root.parent / "beside").exists()


def test_hard_link_reaches_a_lower_layer_and_survives_its_replacement(root: Path) -> None:
    unpack(root, [file("a", b"one", mode=0o4755)], [hard_link("b", "a")], [file("a", b"two"), file("c")])
    assert (root / "b").read_bytes() == b"one"
    assert stat.S_IMODE((root / "b").stat().st_mode) == 0o4755
    assert (root / "a").read_bytes() == b"two"


def test_directory_of_two_layers_has_the_upper_description(root: Path) -> None:
    lower = directory("d", pax_headers={"SCHILY.xattr.user.lower": "1"})
    unpack(root, [lower, file("d/x")], [directory("d", mode=0o700)])
    found = describe(root)
    assert (found[b"d"]["mode"], found[b"d"]["xattrs"]) == (0o700, {})
    assert b"d/x" in found


def test_directory_keeps_its_time_when_a_later_layer_changes_its_content(root: Path) -> None:
    lower = [directory("d", mtime=5), file("d/x"), directory("d/s", mtime=6), file("d/s/y")]
    unpack(root, lower, [whiteout("d/x"), file("d/s/z"), file("e")])
    assert (root / "d").stat().st_mtime == 5
    assert (root / "d/s").stat().st_mtime == 6
    assert root.stat().st_mtime == 0


# -- nothing leaves the tree ----------------------------------------------------------------------------

OUTWARD: dict[str, list[Item]] = {
    "dots": [file("../../../beside")],
    "absolute": [file("/beside")],
    "dots inside": [file("a/../../beside")],
    "link to above": [link("l", ".."), file("l/beside")],
    "absolute link": [link("l", "{above}"), file("l/beside")],
    "link over link": [link("l", "m"), link("m", "/.."), file("l/../beside")],
    "link in the middle": [directory("a"), link("a/l", "../.."), file("a/l/beside")],
    "hard link": [hard_link("x", "{above}/target")],
    "hard link through a link": [link("l", "{above}"), hard_link("x", "l/target")],
    "file over a link": [link("beside", "{above}/target"), file("beside", b"new")],
    "directory over a link": [link("d", "{above}"), directory("d", mode=0o777), file("d/beside")],
    "whiteout through a link": [link("l", "{above}"), file("l/.wh.target")],
    "opaque through a link": [link("l", "{above}"), opaque("l")],
    "link replaced by a link": [directory("a"), file("a/b"), link("a", "{above}"), file("a/beside")],
}


@pytest.mark.parametrize("attack", OUTWARD)
@pytest.mark.parametrize("layers", [1, 2])
def test_nothing_outside_is_changed(root: Path, attack: str, layers: int) -> None:
    above = root.parent
    (above / "target").write_text("kept")
    before = {path: path.lstat() for path in (above, above / "target")}
    items = []
    for item, content in OUTWARD[attack]:
        item.linkname = item.linkname.replace("{above}", str(above))
        items.append((item, content))
    kinds: set[str] = set()
    try:
        unpack(root, *([items] if layers == 1 else [items[:1], items[1:]]))
    except Failure as failure:
        kinds.add(failure.kind)
    assert kinds <= {BAD_LAYER}
    assert sorted(path.name for path in above.iterdir()) == ["root", "target"]
    assert (above / "target").read_text() == "kept"
    assert {path: path.lstat().st_mtime_ns for path in before} == {
        path: about.st_mtime_ns for path, about in before.items()
    }
    assert (above / "target").stat().st_nlink == 1


def test_links_in_a_circle_are_refused(root: Path) -> None:
    with pytest.raises(Failure, match="circle"):
        unpack(root, [link("a", "b"), link("b", "a"), file("a/x")])


@pytest.mark.parametrize("target", ["missing", "d", "x"])
def test_hard_link_to_nothing_is_refused(root: Path, target: str) -> None:
    with pytest.raises(Failure) as caught:
        unpack(root, [directory("d"), hard_link("x", target)])
    assert caught.value.kind == BAD_LAYER
    assert caught.value.entry == "x"


@pytest.mark.parametrize("item", [file("/"), link(".", "x"), file("a/..")])
def test_root_directory_cannot_be_replaced(root: Path, item: Item) -> None:
    with pytest.raises(Failure, match="root directory"):
        unpack(root, [item])


# -- names, types, attributes ---------------------------------------------------------------------------


def test_names_may_be_any_bytes(root: Path) -> None:
    odd = ["\udcff\udc80", "new\nline", "é", "n" * 255, "tab\t", "d" * 255 + "/" + "e" * 255]
    unpack(root, [file(name, name.encode("utf-8", "surrogateescape")) for name in odd])
    for name in odd:
        path = os.fsencode(root) + b"/" + name.encode("utf-8", "surrogateescape")
        assert Path(os.fsdecode(path)).read_bytes() == name.encode("utf-8", "surrogateescape")


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_of_both_formats(root: Path, form: int) -> None:
    long = "/".join(["part" * 20] * 10)
    archive = pack(map(mine, [file(long, b"1"), link("l", "t" * 300), hard_link("h", long)]), form)
    unpack_blobs(root, [(archive, digest(archive))])
    assert (root / "h").read_bytes() == b"1"
    assert (root / "h").stat().st_nlink == 2
    assert str((root / "l").readlink()) == "t" * 300


def test_a_device_becomes_an_empty_file_with_a_note(root: Path) -> None:
    done = unpack(root, [device(f"dev/d{number}", mode=0o666) for number in range(5)])
    assert stat.S_ISREG((root / "dev/d0").stat().st_mode)
    assert done["notes"] == ["device nodes became empty files: dev/d0, dev/d1, dev/d2 and 2 more"]


def test_attributes_of_the_host_are_left_out_with_a_note(root: Path) -> None:
    headers = {"SCHILY.xattr.security.selinux": "x", "SCHILY.xattr.trusted.overlay.opaque": "y"}
    done = unpack(root, [file("x", pax_headers={**headers, "SCHILY.xattr.user.kept": "z"})])
    assert describe(root)[b"x"]["xattrs"] == {"user.kept": b"z"}
    assert len(done["notes"]) == 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1.123456789", 1_123456789), ("1.5", 1_500000000), ("-2.25", -2_250000000), ("3", 3_000000000)],
)
def test_times_are_exact(text: str, expected: int) -> None:
    entry = Entry("x")
    entry.pax_headers = {"mtime": text}
    assert entry.mtime_ns == expected


def test_global_header_changes_no_entry(root: Path) -> None:
    packed = io.BytesIO()
    with tarfile.open(
        fileobj=packed, mode="w", format=tarfile.PAX_FORMAT, pax_headers={"path": "evil"}
    ) as it:
        it.addfile(*[mine(file("good"))[0], io.BytesIO()])
    unpack_blobs(root, [(packed.getvalue(), digest(packed.getvalue()))])
    assert names(root) == {"good"}


def test_sparse_files_of_both_formats(root: Path, tmp_path: Path) -> None:
    import subprocess

    hole = tmp_path / "holes"
    with hole.open("wb") as stream:
        for place in (0, 5 << 20, 9 << 20):
            stream.seek(place)
            stream.write(b"data" * 2000)
        stream.truncate(12 << 20)
    owner = ["--owner", f"+{os.geteuid()}", "--group", f"+{os.getegid()}"]
    for words in (["--format=gnu"], ["--format=posix", "--sparse-version=1.0"], ["--format=posix"]):
        archive = tmp_path / "holes.tar"
        subprocess.run(["tar", "-S", *words, *owner, "-C", tmp_path, "-cf", archive, "holes"], check=True)
        unpack_blobs(root, [(archive.read_bytes(), digest(archive.read_bytes()))])
        assert (root / "holes").read_bytes() == hole.read_bytes()
        assert (root / "holes").stat().st_blocks * 512 < 1 << 20
        (root / "holes").unlink()


# -- damaged content and bounds -------------------------------------------------------------------------


@pytest.mark.parametrize("compress", [bytes, compress_gzip, compress_zstd])
def test_compressions(root: Path, compress: Callable[[bytes], bytes]) -> None:
    archive = pack([mine(file("x", os.urandom(3 << 20)))])
    unpack_blobs(root, [(compress(archive), digest(archive))])
    assert (root / "x").stat().st_size == 3 << 20


def test_several_gzip_members(root: Path) -> None:
    archive = pack([mine(file("x", os.urandom(10_000)))])
    unpack_blobs(root, [(compress_gzip(archive[:3000]) + compress_gzip(archive[3000:]), digest(archive))])
    assert (root / "x").stat().st_size == 10_000


@pytest.mark.parametrize("compress", [bytes, compress_gzip, compress_zstd])
def test_truncated_layer(root: Path, compress: Callable[[bytes], bytes]) -> None:
    archive = pack([mine(file("x", os.urandom(100_000)))])
    for part in (0.3, 0.9):
        blob = compress(archive)[: int(len(compress(archive)) * part)]
        with pytest.raises(Failure, match="truncated|ends within|digest") as caught:
            unpack_blobs(root, [(blob, digest(archive))])
        assert caught.value.kind == BAD_LAYER
        (root / "x").unlink(missing_ok=True)


def test_damaged_gzip(root: Path) -> None:
    archive = pack([mine(file("x", os.urandom(100_000)))])
    blob = bytearray(compress_gzip(archive))
    blob[5000] ^= 255
    with pytest.raises(Failure, match="damaged|digest"):
        unpack_blobs(root, [(bytes(blob), digest(archive))])


def test_other_content_than_promised(root: Path) -> None:
    archive = pack([mine(file("x", b"1"))])
    with pytest.raises(Failure, match="uncompressed, the layer has the digest"):
        unpack_blobs(root, [(archive, digest(b"other"))])


@pytest.mark.parametrize("size", [-1, 1])
def test_blob_of_another_size(size: int) -> None:
    descriptor = os.memfd_create("blob")
    os.write(descriptor, bytes(1024))
    os.lseek(descriptor, 0, os.SEEK_SET)
    blob = Blob(descriptor, digest(bytes(1024)), 1024 + size, digest(bytes(1024)))
    stream = LayerStream(blob, Allowance(1 << 20), lambda _: None)
    with pytest.raises(Failure, match="truncated|more than"):
        stream.finish()
    stream.close()
    os.close(descriptor)


@pytest.mark.parametrize("blob", [b"BZh9" + bytes(99), b"\xfd7zXZ\0" + bytes(99)])
def test_unknown_compression_is_named(root: Path, blob: bytes) -> None:
    with pytest.raises(Failure, match="compressed by"):
        unpack_blobs(root, [(blob, digest(b""))])


def test_damaged_header_is_no_end(root: Path) -> None:
    archive = bytearray(pack(map(mine, [file("a"), file("b")]), tarfile.USTAR_FORMAT))
    archive[512 + 150] ^= 1
    with pytest.raises(Failure, match="damaged header"):
        unpack_blobs(root, [(bytes(archive), digest(bytes(archive)))])


def test_bomb_stops_at_the_limit(root: Path) -> None:
    archive = pack([mine(file("x", bytes(40 << 20)))])
    with pytest.raises(Failure, match="more bytes than allowed") as caught:
        unpack_blobs(root, [(compress_gzip(archive), digest(archive))], most_bytes=8 << 20)
    assert caught.value.kind == TOO_MUCH
    assert (root / "x").stat().st_size <= 8 << 20


def test_bomb_after_the_end_of_the_archive(root: Path) -> None:
    archive = pack([mine(file("x"))]) + bytes(40 << 20)
    with pytest.raises(Failure, match="more bytes than allowed"):
        unpack_blobs(root, [(compress_gzip(archive), digest(archive))], most_bytes=8 << 20)


def test_too_many_entries(root: Path) -> None:
    with pytest.raises(Failure, match="more than 3 entries"):
        unpack(root, [file("a"), file("b")], [file("c"), file("d")], most_entries=3)


def test_too_deep(root: Path) -> None:
    deep = "/".join("d" for _ in range(MOST_DEPTH + 1))
    with pytest.raises(Failure, match="deeper than"):
        unpack(root, [file(f"{deep}/x")])
    unpack(root, [directory(deep[2:])], [whiteout("d")])
    assert names(root) == set()


@pytest.mark.parametrize("name", ["x" * 256, "/".join(["x" * 200] * 25)])
def test_too_long_names(root: Path, name: str) -> None:
    with pytest.raises(Failure, match="longer than"):
        unpack(root, [file(name)])


def test_huge_header_is_refused_before_it_is_read(root: Path) -> None:
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, 1 << 33
    archive = header.tobuf(tarfile.GNU_FORMAT) + bytes(2048)
    with pytest.raises(Failure, match="longer than 2 MiB"):
        unpack_blobs(root, [(archive, digest(archive))])


def test_chain_of_headers_is_refused(root: Path) -> None:
    header = tarfile.TarInfo("x")
    header.type = tarfile.XGLTYPE
    archive = header.tobuf(tarfile.GNU_FORMAT) * 5000
    with pytest.raises(Failure, match="too many headers|longer than 2 MiB"):
        unpack_blobs(root, [(archive, digest(archive))])


def test_negative_size(root: Path) -> None:
    header = mine(file("x"))[0]
    header.size = -512
    archive = header.tobuf(tarfile.GNU_FORMAT) + bytes(2048)
    with pytest.raises(Failure) as caught:
        unpack_blobs(root, [(archive, digest(archive))])
    assert caught.value.kind == BAD_LAYER


@pytest.mark.parametrize("field", ["uid", "gid"])
def test_impossible_owner(root: Path, field: str) -> None:
    header = file("x", **{field: 0xFFFFFFFF})[0]
    archive = header.tobuf(tarfile.GNU_FORMAT) + bytes(1024)
    with pytest.raises(Failure, match="no number of an owner"):
        unpack_blobs(root, [(archive, digest(archive))])


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=3000), st.integers(0, 3000), st.booleans())
def test_damaged_archives_end_in_a_failure_or_a_tree(
    tmp_path_factory: pytest.TempPathFactory, noise: bytes, place: int, sparse: bool
) -> None:
    """No other exception leaves the program, whatever tarfile makes of the bytes."""
    root = tmp_path_factory.mktemp("noise")
    items = [
        directory("d"),
        file("d/x", b"1" * 600, pax_headers={"SCHILY.xattr.user.a": "b"}),
        link("l", "d"),
    ]
    archive = bytearray(pack(map(mine, items)))
    if sparse:
        archive[156] = ord("S")
    archive[place : place + len(noise)] = noise
    try:
        unpack_blobs(root, [(bytes(archive), digest(bytes(archive)))])
    except Failure as failure:
        said = failure.sentence
    else:
        said = "a tree"
    assert said.isprintable()


def test_split_path() -> None:
    assert split_path(b"./a//b/../c/") == [b"a", b"c"]
    assert split_path(b"../..") == []


def test_show() -> None:
    assert show(b"a\x1b[31m\xff\n" + "é".encode()) == "a\\x1b[31m\\xff\\né"
    assert len(show(b"x" * 5000)) == 200


def test_notes_are_bounded() -> None:
    notes = Notes()
    for number in range(1000):
        notes.add(f"kind {number}", b"x")
    assert len(notes.render()) == 50


def test_entries_are_counted(root: Path) -> None:
    done = unpack(root, [directory("d"), file("d/x", b"1" * 5000)])
    assert (done["entries"], done["content_bytes"]) == (2, 8192)
    assert (root / "d/x").stat().st_mtime == MTIME
