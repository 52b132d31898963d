"""Copying onto existing entries: one table for both directions."""

from __future__ import annotations

import ast
import marshal
import os
import socket
import stat
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from bough.client.copy import copy_in, copy_out, read_file, write_file
from bough.client.copying import program
from bough.client.copying.program import render_program
from bough.client.machine import Machine
from bough.errors import InvalidInput, NoSpace, NotFound
from tests.unit.local_machine import LocalMachine

MACHINE = cast(Machine, LocalMachine())
Copy = Callable[..., Any]

both_ways = pytest.mark.parametrize("copy", [copy_in, copy_out])


def make(kind: str, path: Path, content: str) -> None:
    """Make an entry of that `kind` (see the tables) at `path`; targets of links lie beside the tree."""
    away = path.parent.parent / "away"
    if kind == "file":
        path.write_text(content)
    elif kind == "directory":
        path.mkdir()
        (path / content).write_text(content)
    elif kind == "link to file":
        path.symlink_to(away / "file")
    elif kind == "link to directory":
        path.symlink_to(away / "directory")
    elif kind == "dangling link":
        path.symlink_to(away / "nothing")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))


def look(path: Path) -> tuple[object, ...]:
    if not os.path.lexists(path):
        return ("nothing",)
    info = path.lstat()
    kind = stat.S_IFMT(info.st_mode)
    if path.is_symlink():
        return (kind, str(path.readlink()))
    if path.is_dir():
        return (kind, sorted((inner.name, inner.read_text()) for inner in path.iterdir()))
    return (kind, path.read_text() if path.is_file() else "")


SOURCES = ["file", "directory", "link to file", "link to directory", "dangling link"]
THERE = ["nothing", *SOURCES, "pipe", "socket"]
LINKS = ("link to file", "link to directory", "dangling link")


def outcome(source: str, there: str) -> str:
    """Return the expected result of a copy of `source` onto `there`, below the destination."""
    if there == "nothing":
        return "made"
    if source == "directory":
        return "merged" if there == "directory" else "refused"
    if there in ("file", "link to file", "dangling link"):
        return "replaced"
    if there == "link to directory" and source in LINKS:
        return "replaced"
    return "refused"


@both_ways
@pytest.mark.parametrize("there", THERE)
@pytest.mark.parametrize("source", SOURCES)
def test_inside_a_tree(copy: Copy, tmp_path: Path, source: str, there: str) -> None:
    (tmp_path / "away/directory").mkdir(parents=True)
    (tmp_path / "away/directory/inside").write_text("away")
    (tmp_path / "away/file").write_text("away")
    for place in ("from", "to"):
        (tmp_path / place).mkdir()
    make(source, tmp_path / "from/it", "new")
    (tmp_path / "from/other").write_text("new")  # follows later
    make(there, tmp_path / "to/it", "old")
    sent, before = look(tmp_path / "from/it"), look(tmp_path / "to/it")
    expected = outcome(source, there)
    if expected == "refused":
        with pytest.raises(InvalidInput, match=f"not copied: {tmp_path}/to/it.*is there"):
            copy(MACHINE, f"{tmp_path}/from/.", f"{tmp_path}/to")
        assert look(tmp_path / "to/it") == before
    else:
        copy(MACHINE, f"{tmp_path}/from/.", f"{tmp_path}/to")
        merged = (sent[0], [("new", "new"), ("old", "old")])
        assert look(tmp_path / "to/it") == (merged if expected == "merged" else sent)
    # The target of a link is never written, the rest is copied, and no half-made file stays.
    assert look(tmp_path / "away/directory") == (stat.S_IFDIR, [("inside", "away")])
    assert (tmp_path / "away/file").read_text() == "away"
    assert not (tmp_path / "away/nothing").exists()
    assert (tmp_path / "to/other").read_text() == "new"
    assert sorted(path.name for path in (tmp_path / "to").iterdir()) == ["it", "other"]


#: (source, kind of the destination) -> the result, or the words of the error.
NAMED = {
    ("file", "nothing"): "file",
    ("file", "file"): "file",
    ("file", "directory"): "in it",
    ("file", "link to file"): "through",
    ("file", "link to directory"): "in it",
    ("file", "dangling link"): "is a link to a file that is not there",
    ("directory", "nothing"): "directory",
    ("directory", "file"): "is not a directory",
    ("directory", "directory"): "in it",
    ("directory", "link to file"): "is not a directory",
    ("directory", "link to directory"): "in it",
    ("directory", "dangling link"): "is not a directory",
    ("directory", "pipe"): "is not a directory",
}


@both_ways
@pytest.mark.parametrize(("source", "there"), NAMED)
def test_as_the_destination(copy: Copy, tmp_path: Path, source: str, there: str) -> None:
    """Links in the destination are followed, as in `cp`."""
    (tmp_path / "away/directory").mkdir(parents=True)
    (tmp_path / "away/file").write_text("away")
    for place in ("from", "to"):
        (tmp_path / place).mkdir()
    make(source, tmp_path / "from/it", "new")
    make(there, tmp_path / "to/name", "old")
    sent, before = look(tmp_path / "from/it"), look(tmp_path / "to/name")
    expected = NAMED[source, there]
    if expected.startswith("is "):
        with pytest.raises(InvalidInput, match=expected):
            copy(MACHINE, f"{tmp_path}/from/it", f"{tmp_path}/to/name")
        assert look(tmp_path / "to/name") == before
        return
    copy(MACHINE, f"{tmp_path}/from/it", f"{tmp_path}/to/name")
    if expected == "through":
        assert look(tmp_path / "to/name") == before
        assert look(tmp_path / "away/file") == sent
    elif expected == "in it":
        assert (tmp_path / "to/name").is_symlink() == there.startswith("link")
        assert look(tmp_path / "to/name/it") == sent
    else:
        assert look(tmp_path / "to/name") == sent


@both_ways
def test_a_link_that_came_with_an_earlier_copy_is_not_followed(copy: Copy, tmp_path: Path) -> None:
    """A guest first sends a link, and later a file of the same name."""
    (tmp_path / "from").mkdir()
    (tmp_path / "to").mkdir()
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "to/it").symlink_to(tmp_path / "precious")
    (tmp_path / "from/it").write_text("theirs")
    copy(MACHINE, f"{tmp_path}/from/it", f"{tmp_path}/to/")
    assert (tmp_path / "precious").read_text() == "mine"
    assert look(tmp_path / "to/it") == (stat.S_IFREG, "theirs")


@both_ways
def test_directories_that_are_there_keep_their_modes(copy: Copy, tmp_path: Path) -> None:
    """`bough cp "$(mktemp -d)"/. web:/` must not close the guest's / to all but root."""
    for place in ("from", "to"):
        (tmp_path / place / "tmp").mkdir(parents=True)
    (tmp_path / "from").chmod(0o700)
    (tmp_path / "from/tmp").chmod(0o755)
    (tmp_path / "from/new").mkdir(0o711)
    (tmp_path / "to").chmod(0o755)
    (tmp_path / "to/tmp").chmod(0o1777)
    copy(MACHINE, f"{tmp_path}/from/.", f"{tmp_path}/to")
    modes = [stat.S_IMODE((tmp_path / "to" / name).stat().st_mode) for name in (".", "tmp", "new")]
    assert modes == [0o755, 0o1777, 0o711]


@both_ways
def test_a_device_or_pipe_that_is_named_is_written_to(copy: Copy, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "holes").touch()
    os.truncate(tmp_path / "holes", 200_000)
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    try:
        copy(MACHINE, f"{tmp_path}/file", f"{tmp_path}/pipe")
        assert os.read(reader, 100) == b"content"
    finally:
        os.close(reader)
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    copy(MACHINE, f"{tmp_path}/holes", "/dev/null")
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)


@both_ways
def test_several_sources(copy: Copy, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "inside").write_text(name)
    (tmp_path / "file").write_text("file")
    (tmp_path / "again").hardlink_to(tmp_path / "file")
    (tmp_path / "to").mkdir()
    sources = [f"{tmp_path}/{name}" for name in ("a", "file", "again", "b/.")]
    result = copy(MACHINE, sources, f"{tmp_path}/to/")
    assert sorted(path.name for path in (tmp_path / "to").iterdir()) == ["a", "again", "file", "inside"]
    assert (tmp_path / "to/again").samefile(tmp_path / "to/file")
    assert result.files == 4
    with pytest.raises(InvalidInput, match="is not a directory"):
        copy(MACHINE, sources, f"{tmp_path}/absent")
    with pytest.raises(InvalidInput, match="is not a directory"):
        copy(MACHINE, sources, f"{tmp_path}/file")
    with pytest.raises(InvalidInput, match="two of the sources are named a"):
        copy(MACHINE, [f"{tmp_path}/a", f"{tmp_path}/to/a"], f"{tmp_path}/b")
    with pytest.raises(NotFound, match="absent"):
        copy(MACHINE, [f"{tmp_path}/a", f"{tmp_path}/absent"], f"{tmp_path}/b")
    assert not (tmp_path / "b/a").exists()


@both_ways
def test_a_tree_of_a_thousand_levels(copy: Copy, tmp_path: Path) -> None:
    """Copy a tree that is deeper than Python's recursion, the process's descriptors and the longest path."""
    depth, name = 1200, "level " * 3
    here = os.open(tmp_path, os.O_RDONLY)
    for level in range(depth):
        os.mkdir("tree" if level == 0 else name, dir_fd=here)
        inner = os.open("tree" if level == 0 else name, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(os.open("bottom", os.O_WRONLY | os.O_CREAT, 0o640, dir_fd=here))
    os.close(here)
    result = copy(MACHINE, f"{tmp_path}/tree", f"{tmp_path}/there")
    assert result.files == 1
    here = os.open(tmp_path / "there", os.O_RDONLY)
    for _ in range(depth - 1):
        inner = os.open(name, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    assert stat.S_IMODE(os.stat("bottom", dir_fd=here).st_mode) == 0o640
    os.close(here)
    # pytest's own removal recurses
    subprocess.run(["rm", "-rf", tmp_path / "tree", tmp_path / "there"], check=True)


@both_ways
def test_names_that_are_no_utf_8_keep_their_times(copy: Copy, tmp_path: Path) -> None:
    latin = os.fsdecode(b"\xe9")
    odd, to = tmp_path / os.fsdecode(b"\xff\xfe \n"), tmp_path / os.fsdecode(b"to \xfe")
    odd.mkdir()
    (odd / latin).write_text("x")
    (odd / f"link {latin}").symlink_to(latin)
    os.utime(odd / latin, ns=(1_234_567_890, 1_234_567_890))
    copy(MACHINE, str(odd), str(to))
    assert sorted(path.name for path in to.iterdir()) == [f"link {latin}", latin]
    assert (to / latin).stat().st_mtime_ns == 1_234_567_890
    assert str((to / f"link {latin}").readlink()) == latin
    write_file(MACHINE, str(odd / f"%\\é\n{latin}"), b"stream", 0o644)
    assert (odd / f"%\\é\n{latin}").read_bytes() == b"stream"
    assert read_file(MACHINE, str(odd / f"%\\é\n{latin}"), 100) == b"stream"


@both_ways
def test_files_that_say_they_are_empty(copy: Copy, tmp_path: Path) -> None:
    copy(MACHINE, "/proc/filesystems", f"{tmp_path}/there")
    assert "proc" in (tmp_path / "there").read_text()


@both_ways
def test_one_that_cannot_be_read_is_told_and_the_rest_is_copied(copy: Copy, tmp_path: Path) -> None:
    (tmp_path / "from").mkdir()
    (tmp_path / "from/a").symlink_to("b")
    (tmp_path / "from/b").write_text("b")
    os.truncate(tmp_path / "from/b", 0)
    (tmp_path / "to").mkdir()
    for name in ("x", "y"):
        (tmp_path / "to/deep" / name).mkdir(parents=True)
        (tmp_path / "from/deep").mkdir(exist_ok=True)
        (tmp_path / "from/deep" / name).write_text("file")
    with pytest.raises(InvalidInput, match="2 entries were not copied") as caught:
        copy(MACHINE, f"{tmp_path}/from/.", f"{tmp_path}/to")
    assert [problem["message"] for problem in caught.value.problems] == ["a directory is there"] * 2
    assert sorted(path.name for path in (tmp_path / "to").iterdir()) == ["a", "b", "deep"]


as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may")


@both_ways
@as_root
def test_owners_and_rights(copy: Copy, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    tree.chmod(0o1777)
    (tree / "theirs").write_text("x")
    (tree / "link").symlink_to("theirs")
    os.chown(tree / "theirs", 1234, 5678)
    os.chown(tree / "link", 1234, 5678, follow_symlinks=False)
    (tree / "theirs").chmod(0o6755)
    result = copy(MACHINE, str(tree), f"{tmp_path}/plain")
    info = (tmp_path / "plain/theirs").stat()
    assert (info.st_uid, info.st_gid, stat.S_IMODE(info.st_mode)) == (0, os.getegid(), 0o755)
    assert stat.S_IMODE((tmp_path / "plain").stat().st_mode) == 0o1777
    told = " ".join(result.not_kept)
    assert "did not keep the owners of 2 entries" in told
    assert f"set-group-id bit of 1 entry: {tree}/theirs" in told
    result = copy(MACHINE, str(tree), f"{tmp_path}/owned", owner=True)
    info = (tmp_path / "owned/theirs").stat()
    assert (info.st_uid, info.st_gid, stat.S_IMODE(info.st_mode)) == (1234, 5678, 0o6755)
    assert (tmp_path / "owned/link").lstat().st_uid == 1234
    assert result.not_kept == ()


@both_ways
@as_root
def test_a_file_that_is_replaced_keeps_its_owner(copy: Copy, tmp_path: Path) -> None:
    (tmp_path / "new").write_text("new")
    (tmp_path / "old").write_text("old")
    os.chown(tmp_path / "old", 1234, 5678)
    copy(MACHINE, f"{tmp_path}/new", f"{tmp_path}/old")
    write_file(MACHINE, f"{tmp_path}/old", b"newer", 0o640)
    info = (tmp_path / "old").stat()
    assert (info.st_uid, info.st_gid, stat.S_IMODE(info.st_mode)) == (1234, 5678, 0o640)
    assert (tmp_path / "old").read_text() == "newer"


@both_ways
def test_extended_attributes_and_acls(copy: Copy, tmp_path: Path) -> None:
    acl = bytes.fromhex(
        "02000000 01000600ffffffff 02000600d2040000 04000400ffffffff 10000600ffffffff 20000400ffffffff"
    )
    (tmp_path / "file").write_text("x")
    try:
        os.setxattr(tmp_path / "file", "user.note", b"\0any\n=bytes")
        os.setxattr(tmp_path / "file", "system.posix_acl_access", acl)
    except OSError:
        pytest.skip("this file system has none")
    copy(MACHINE, f"{tmp_path}/file", f"{tmp_path}/there")
    assert os.getxattr(tmp_path / "there", "user.note") == b"\0any\n=bytes"
    assert os.getxattr(tmp_path / "there", "system.posix_acl_access") == acl


@both_ways
@as_root
def test_capabilities(copy: Copy, tmp_path: Path) -> None:
    capability = bytes.fromhex("0100000200200000000000000000000000000000")
    (tmp_path / "file").write_text("x")
    try:
        os.setxattr(tmp_path / "file", "security.capability", capability)
    except OSError:
        pytest.skip("this file system has none")
    result = copy(MACHINE, f"{tmp_path}/file", f"{tmp_path}/plain")
    assert "security.capability" not in os.listxattr(tmp_path / "plain")
    assert result.not_kept == (f"did not keep the capabilities of 1 file: {tmp_path}/file",)
    copy(MACHINE, f"{tmp_path}/file", f"{tmp_path}/owned", owner=True)
    assert os.getxattr(tmp_path / "owned", "security.capability") == capability


@both_ways
def test_a_full_disk_half_way(copy: Copy, tmp_path: Path) -> None:
    """Existing files stay whole; /dev/full stands for a full disk."""
    (tmp_path / "file").write_bytes(b"x" * 1000)
    with pytest.raises(NoSpace):
        copy(MACHINE, f"{tmp_path}/file", "/dev/full")


def test_a_link_that_is_written_to_by_a_stream(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "dangling").symlink_to("nothing")
    write_file(MACHINE, f"{tmp_path}/link", b"new", 0o644)
    assert (tmp_path / "real").read_text() == "new"
    assert (tmp_path / "link").is_symlink()
    with pytest.raises(InvalidInput, match="link to a file that is not there"):
        write_file(MACHINE, f"{tmp_path}/dangling", b"new", 0o644)


def test_the_guests_end_is_python_3_7() -> None:
    sent = render_program("send", [b"/"], [b""], False)
    # a guest must not learn a path of the host
    assert os.fsencode(Path(program.__file__).parent) not in sent
    modules = marshal.loads(zlib.decompress(marshal.loads(sent[10:])[2]))
    assert [name for name, _ in modules][-1] == "bough.client.copying.ends"
    for _, text in modules:
        tree = ast.parse(text, feature_version=(3, 7))
        words = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        assert not words & {"removeprefix", "removesuffix", "is_relative_to"}
        assert not {node.arg for node in ast.walk(tree) if isinstance(node, ast.keyword)} & {"strict"}
