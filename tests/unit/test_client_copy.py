"""Copying: the same result as `cp -r`, byte for byte, and limits for a hostile guest's archive."""

from __future__ import annotations

import io
import os
import socket
import stat
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from bough.client.copy import copy_in, copy_out, read_file, write_file
from bough.client.copying.archive import Reader
from bough.client.copying.unpack import Unpacker, parse_name
from bough.client.machine import Machine
from bough.errors import BoughError, GuestRefused, InvalidInput, NotFound, ProtocolError
from bough.progress import Progress
from tests.unit.local_machine import LocalMachine

MACHINE = cast(Machine, LocalMachine())
Copy = Callable[[str, str], Any]
THEN_NS = 981_173_106_123_456_789


def send(source: str, destination: str) -> Any:
    return copy_in(MACHINE, source, destination)


def fetch(source: str, destination: str) -> Any:
    return copy_out(MACHINE, source, destination)


both_ways = pytest.mark.parametrize("copy", [send, fetch])


def make_tree(root: Path) -> None:
    root.mkdir()
    for name in ("with space", "ümlaut", "new\nline", "-dash", "quo'te\"", "back\\slash", "*", "n" * 200):
        (root / name).write_text(f"content of {name}")
    no_text = Path(os.fsdecode(os.fsencode(root) + b"/no utf-8 \xff\xfe"))
    no_text.write_bytes(b"x")
    os.utime(no_text, (981_173_106, 981_173_106))  # the tar format for such names has whole seconds
    (root / "program").write_bytes(b"#!/bin/sh\n")
    (root / "program").chmod(0o755)
    (root / "again").hardlink_to(root / "program")
    (root / "deep/deeper").mkdir(parents=True)
    (root / "deep/deeper/file").write_bytes(os.urandom(100_000))
    (root / "deep/program, again").hardlink_to(root / "program")
    (root / "empty").touch()
    (root / "empty directory").mkdir()
    (root / "link").symlink_to("program")
    (root / "dangling").symlink_to("/no/such/target")
    (root / "link to a directory").symlink_to("deep")
    with (root / "holes").open("wb") as file:
        file.seek(3 << 20)
        file.write(b"in the middle")
        file.truncate(64 << 20)
    os.utime(root / "program", ns=(THEN_NS, THEN_NS))
    os.utime(root / "deep", ns=(THEN_NS, THEN_NS))
    (root / "closed").mkdir()
    (root / "closed/inside").touch()
    (root / "closed").chmod(0o500)


def describe(root: Path) -> dict[str, tuple[object, ...]]:
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(root.rglob("*")):
        info = path.lstat()
        detail: tuple[object, ...] = (stat.S_IFMT(info.st_mode),)
        if path.is_symlink():
            detail += (str(path.readlink()),)
        else:
            detail += (stat.S_IMODE(info.st_mode), info.st_mtime_ns)
        if stat.S_ISREG(info.st_mode):
            detail += (info.st_nlink, path.read_bytes())
        found[str(path.relative_to(root))] = detail
    return found


@both_ways
def test_a_tree_arrives_as_it_was(copy: Copy, tmp_path: Path) -> None:
    make_tree(tmp_path / "tree")
    copy(f"{tmp_path}/tree", f"{tmp_path}/there")
    assert describe(tmp_path / "there") == describe(tmp_path / "tree")
    assert (tmp_path / "there/holes").stat().st_blocks * 512 < 1 << 20
    assert (tmp_path / "there/again").samefile(tmp_path / "there/program")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["there", "tree"]


@both_ways
def test_a_file_arrives_as_it_was(copy: Copy, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(os.urandom(1_000_003))
    source.chmod(0o640)
    os.utime(source, ns=(THEN_NS, THEN_NS))
    result = copy(str(source), f"{tmp_path}/there")
    there = tmp_path / "there"
    assert there.read_bytes() == source.read_bytes()
    assert (stat.S_IMODE(there.stat().st_mode), there.stat().st_mtime_ns) == (0o640, THEN_NS)
    assert (result.files, result.bytes) == (1, 1_000_003)


@both_ways
@pytest.mark.parametrize("size", [0, 1, 511, 512, 513, 10240, 262144, 262145])
def test_sizes_at_the_edges_of_blocks(copy: Copy, tmp_path: Path, size: int) -> None:
    (tmp_path / "source").write_bytes(os.urandom(size))
    copy(f"{tmp_path}/source", f"{tmp_path}/there")
    assert (tmp_path / "there").read_bytes() == (tmp_path / "source").read_bytes()


@both_ways
@pytest.mark.parametrize(
    ("source", "destination", "expected"),
    [
        ("file", "new", "new"),
        ("file", "old", "old"),
        ("file", "dir", "dir/file"),
        ("file", "dir/", "dir/file"),
        ("file", "link to dir", "dir/file"),
        ("file", "link to old", "old"),
        ("link to file", "new", "new"),
        ("tree", "new", "new/inside"),
        ("tree/", "new", "new/inside"),
        ("tree", "dir", "dir/tree/inside"),
        ("tree", "dir/", "dir/tree/inside"),
        ("tree/.", "dir", "dir/inside"),
        ("tree/.", "new", "new/inside"),
        ("link to tree", "new", "new/inside"),
    ],
)
def test_where_things_go(copy: Copy, tmp_path: Path, source: str, destination: str, expected: str) -> None:
    (tmp_path / "file").write_text("wanted")
    (tmp_path / "old").write_text("before")
    (tmp_path / "dir").mkdir()
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/inside").write_text("wanted")
    (tmp_path / "link to file").symlink_to("file")
    (tmp_path / "link to tree").symlink_to("tree")
    (tmp_path / "link to dir").symlink_to("dir")
    (tmp_path / "link to old").symlink_to("old")
    copy(f"{tmp_path}/{source}", f"{tmp_path}/{destination}")
    assert (tmp_path / expected).read_text() == "wanted"
    assert not (tmp_path / expected).is_symlink()
    if destination.startswith("link"):
        assert (tmp_path / destination).is_symlink()


@both_ways
def test_a_tree_onto_a_tree_is_merged(copy: Copy, tmp_path: Path) -> None:
    for place, name in (("tree", "new"), ("dir/tree", "old")):
        (tmp_path / place / "deep").mkdir(parents=True)
        (tmp_path / place / "deep" / name).touch()
    copy(f"{tmp_path}/tree", f"{tmp_path}/dir")
    assert sorted(path.name for path in (tmp_path / "dir/tree/deep").iterdir()) == ["new", "old"]


@both_ways
@pytest.mark.parametrize(
    ("source", "destination", "error", "says"),
    [
        ("absent", "new", NotFound, "absent"),
        ("absent", "dir", NotFound, "absent"),
        ("file", "no/such/new", NotFound, "no/such"),
        ("tree", "no/such/new", NotFound, "no/such"),
        ("tree", "file", InvalidInput, "directory"),
        ("file", "new/", (NotFound, InvalidInput), "new/"),
        ("file", "clash", (InvalidInput, GuestRefused), "directory"),
    ],
)
def test_what_cannot_be(
    copy: Copy, tmp_path: Path, source: str, destination: str, error: type[BoughError], says: str
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "tree").mkdir()
    (tmp_path / "dir").mkdir()
    (tmp_path / "clash/file").mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(error, match=says):
        copy(f"{tmp_path}/{source}", f"{tmp_path}/{destination}")
    assert sorted(tmp_path.rglob("*")) == before


@both_ways
def test_what_is_neither_file_nor_directory_is_left_out(copy: Copy, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/file").touch()
    os.mkfifo(tmp_path / "tree/pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{tmp_path}/tree/socket")
        result = copy(f"{tmp_path}/tree", f"{tmp_path}/there")
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["file"]
    assert any("pipe" in name for name in result.skipped)


def test_through_pipes(tmp_path: Path) -> None:
    data = os.urandom(1_000_001)
    copy_in(MACHINE, io.BytesIO(data), f"{tmp_path}/piped")
    out = io.BytesIO()
    copy_out(MACHINE, f"{tmp_path}/piped", out)
    assert out.getvalue() == data
    assert [path.name for path in tmp_path.iterdir()] == ["piped"]
    with pytest.raises(NotFound):
        copy_in(MACHINE, io.BytesIO(data), f"{tmp_path}/no/such")
    with pytest.raises(InvalidInput):
        copy_in(MACHINE, io.BytesIO(data), str(tmp_path))
    with pytest.raises(NotFound):
        copy_out(MACHINE, f"{tmp_path}/absent", out)
    with pytest.raises(InvalidInput):
        copy_out(MACHINE, str(tmp_path), out)


def test_read_and_write(tmp_path: Path) -> None:
    write_file(MACHINE, f"{tmp_path}/file", b"\0content", 0o600)
    assert read_file(MACHINE, f"{tmp_path}/file", 100) == b"\0content"
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o600
    with pytest.raises(InvalidInput, match="larger than"):
        read_file(MACHINE, f"{tmp_path}/file", 3)


def test_a_failed_copy_leaves_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "old").write_text("before")

    class Torn(io.RawIOBase):
        def read(self, size: int = -1) -> bytes:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        copy_in(MACHINE, Torn(), f"{tmp_path}/old")  # type: ignore[arg-type]
    assert (tmp_path / "old").read_text() == "before"


@both_ways
def test_progress(copy: Copy, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(bytes(3 << 20))
    told: list[Progress] = []
    if copy is send:
        copy_in(MACHINE, f"{tmp_path}/source", f"{tmp_path}/there", told.append)
    else:
        copy_out(MACHINE, f"{tmp_path}/source", f"{tmp_path}/there", told.append)
    assert told[-1].fraction == 1.0


# -- archives that a hostile guest would send -----------------------------------------------------------


def entry(name: str, kind: bytes = tarfile.REGTYPE, content: bytes = b"", **fields: Any) -> tuple[Any, bytes]:
    member = tarfile.TarInfo(name)
    member.type, member.size = kind, len(content)
    for field, value in fields.items():
        setattr(member, field, value)
    return member, content


def unpack(root: Path, *entries: tuple[Any, bytes]) -> Unpacker:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for member, content in entries:
            archive.addfile(member, io.BytesIO(content))
    buffer.seek(0)
    reader = Reader(buffer.read)
    with Unpacker(os.fsencode(root)) as unpacker:
        while (member := reader.next()) is not None:
            unpacker.extract(reader, member, parse_name(member.path))
        unpacker.finish()
        return unpacker


@pytest.fixture
def inside(tmp_path: Path) -> Path:
    (tmp_path / "inside").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/precious").write_text("mine")
    return tmp_path / "inside"


@pytest.mark.parametrize("name", ["/etc/x", "../x", "a/../../x", "a/..", "./../x", "a/" * 5000, "n" * 300])
def test_names_that_lead_elsewhere(inside: Path, name: str) -> None:
    with pytest.raises(ProtocolError):
        unpack(inside, entry(name, content=b"x"))
    assert not any(inside.iterdir())


def test_nothing_is_written_through_a_link_that_came_with_it(inside: Path) -> None:
    with pytest.raises(OSError, match=r"Too many|Not a directory"):
        unpack(
            inside,
            entry("way", tarfile.SYMTYPE, linkname="../outside"),
            entry("way/precious", content=b"theirs"),
        )
    assert (inside.parent / "outside/precious").read_text() == "mine"


def test_a_link_in_a_files_place_is_replaced_not_followed(inside: Path) -> None:
    (inside / "file").symlink_to("../outside/precious")
    unpack(inside, entry("file", content=b"theirs"))
    assert (inside / "file").read_text() == "theirs"
    assert (inside.parent / "outside/precious").read_text() == "mine"


def test_a_directory_over_a_link_does_not_change_its_target(inside: Path) -> None:
    mode = (inside.parent / "outside").stat().st_mode
    with pytest.raises(OSError, match=r"Too many|Not a directory"):
        unpack(
            inside,
            entry("way", tarfile.SYMTYPE, linkname="../outside"),
            entry("way", tarfile.DIRTYPE, mode=0o777),
        )
    assert (inside.parent / "outside").stat().st_mode == mode


@pytest.mark.parametrize("target", ["../outside/precious", "/etc/passwd", "absent", "way/precious"])
def test_hard_links_only_to_what_came(inside: Path, target: str) -> None:
    (inside / "way").symlink_to("../outside")
    with pytest.raises(ProtocolError):
        unpack(inside, entry("link", tarfile.LNKTYPE, linkname=target))
    assert not (inside / "link").exists()


def test_no_devices_and_no_set_user_id(inside: Path) -> None:
    unpacker = unpack(
        inside,
        entry("disk", tarfile.BLKTYPE, devmajor=8),
        entry("null", tarfile.CHRTYPE),
        entry("pipe", tarfile.FIFOTYPE),
        entry("program", content=b"x", mode=0o6755),
    )
    assert unpacker.skipped == ["disk", "null", "pipe"]
    assert [path.name for path in inside.iterdir()] == ["program"]
    assert stat.S_IMODE((inside / "program").stat().st_mode) == 0o755


def test_a_content_that_ends_early(inside: Path) -> None:
    buffer = io.BytesIO(entry("file", content=b"x" * 5000)[0].tobuf() + b"x" * 100)
    reader = Reader(buffer.read)
    with Unpacker(os.fsencode(inside)) as unpacker:
        member = reader.next()
        assert member is not None
        with pytest.raises(ProtocolError, match="less"):
            unpacker.extract(reader, member, (b"file",))
    assert not any(inside.iterdir())
