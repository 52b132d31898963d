"""`bough cp`, both ways: files, trees, pipes; names, modes, times and links are kept."""

from __future__ import annotations

import hashlib
import os
import re
import stat
import subprocess
from pathlib import Path

import pytest

from tests.acceptance.conftest import Cli

ODD_NAMES = ["with space", "ümlaut", "new\nline", "-dash", "quo'te\"", "back\\slash", "*", "$HOME", "~"]
THEN = 981_173_106  # 2001-02-03 04:05:06 UTC


@pytest.fixture
def place(cli: Cli, box: str) -> str:
    """Return an empty directory in the guest."""
    return cli.text("exec", box, "--", "mktemp", "-d")


def make_tree(root: Path) -> None:
    root.mkdir()
    for name in ODD_NAMES:
        (root / name).write_text(f"content of {name}")
    (root / "program").write_bytes(b"#!/bin/sh\n")
    (root / "program").chmod(0o755)
    (root / "private").write_bytes(b"x")
    (root / "private").chmod(0o600)
    (root / "empty").touch()
    (root / "deep" / "deeper").mkdir(parents=True)
    (root / "deep" / "deeper" / "file").write_bytes(os.urandom(100_000))
    (root / "empty directory").mkdir()
    (root / "link").symlink_to("program")
    (root / "dangling").symlink_to("/no/such/target")
    (root / "link to a directory").symlink_to("deep")
    os.utime(root / "program", (THEN, THEN))
    os.utime(root / "deep", (THEN, THEN))


def describe_tree(root: Path) -> dict[str, tuple[object, ...]]:
    """Return the facts that must be the same on both sides, by path."""
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(root.rglob("*")):
        info = path.lstat()
        kind = stat.S_IFMT(info.st_mode)
        if stat.S_ISLNK(info.st_mode):
            detail: tuple[object, ...] = (str(path.readlink()),)
        else:
            content = path.read_bytes() if stat.S_ISREG(info.st_mode) else b""
            detail = (stat.S_IMODE(info.st_mode), int(info.st_mtime), content)
        found[str(path.relative_to(root))] = (kind, *detail)
    return found


def test_a_file_there_and_back(cli: Cli, box: str, place: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(os.urandom(1_000_003))
    source.chmod(0o640)
    os.utime(source, (THEN, THEN))
    cli("cp", source, f"{box}:{place}/there")
    cli("cp", f"{box}:{place}/there", tmp_path / "back")
    back = tmp_path / "back"
    assert back.read_bytes() == source.read_bytes()
    assert stat.S_IMODE(back.stat().st_mode) == 0o640
    assert int(back.stat().st_mtime) == THEN
    assert cli.text("exec", box, "--", "stat", "-c", "%a %Y", f"{place}/there") == f"640 {THEN}"


def test_a_tree_there_and_back(cli: Cli, box: str, place: str, tmp_path: Path) -> None:
    make_tree(tmp_path / "tree")
    cli("cp", tmp_path / "tree", f"{box}:{place}/tree")
    cli("cp", f"{box}:{place}/tree", tmp_path / "back")
    assert describe_tree(tmp_path / "back") == describe_tree(tmp_path / "tree")


def test_into_a_directory_that_is_there(cli: Cli, box: str, place: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("one")
    cli("cp", tmp_path / "file", f"{box}:{place}")
    assert cli.text("exec", box, "--", "cat", f"{place}/file") == "one"
    (tmp_path / "into").mkdir()
    cli("cp", f"{box}:{place}/file", tmp_path / "into")
    assert (tmp_path / "into" / "file").read_text() == "one"


def test_stdin_and_stdout(cli: Cli, box: str, place: str) -> None:
    data = os.urandom(500_000)
    cli("cp", "-", f"{box}:{place}/piped", stdin=data)
    assert cli("cp", f"{box}:{place}/piped", "-").stdout == data


def test_256_mib_each_way_byte_identical(cli: Cli, box: str, place: str, tmp_path: Path) -> None:
    size = 256 * 1024 * 1024
    source = tmp_path / "big"
    subprocess.run(["head", "-c", str(size), "/dev/urandom"], stdout=source.open("wb"), check=True)
    wanted = sha256(source)
    cli("cp", source, f"{box}:{place}/big", timeout_s=300)
    assert cli.text("exec", box, "--", "sha256sum", f"{place}/big").split()[0] == wanted
    cli("cp", f"{box}:{place}/big", tmp_path / "back", timeout_s=300)
    assert sha256(tmp_path / "back") == wanted
    cli("exec", box, "--", "rm", f"{place}/big")


def sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def test_what_is_not_there_is_told(cli: Cli, box: str, place: str, tmp_path: Path) -> None:
    cli.error("cp", tmp_path / "absent", f"{box}:{place}/x", says="absent")
    cli.error("cp", f"{box}:/no/such/file", tmp_path / "x", says="/no/such/file")
    assert not (tmp_path / "x").exists()
    cli.error("cp", tmp_path / "a", tmp_path / "b", says="machine")


def test_a_copy_to_a_full_disk_is_told(cli: Cli, box: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(4 * 1024 * 1024))
    script = "mkdir -p /mnt/small && mount -t tmpfs -o size=1m tmpfs /mnt/small"
    cli("exec", box, "--", "sh", "-c", script)
    try:
        # In tar's words, for it is tar that writes there: "Wrote only", or "No space left on device".
        told = cli.error("cp", tmp_path / "file", f"{box}:/mnt/small/file", says="/mnt/small/file")
        assert re.search("wrote only|space", told, re.IGNORECASE), told
    finally:
        cli("exec", box, "--", "umount", "/mnt/small")


def test_a_guest_cannot_write_beside_the_target(cli: Cli, box: str, place: str, tmp_path: Path) -> None:
    """A link out of the tree is copied as a link, and nothing is written through it."""
    outside = tmp_path / "outside"
    outside.mkdir()
    script = f"mkdir {place}/t && ln -s {outside} {place}/t/out && touch {place}/t/file"
    cli("exec", box, "--", "sh", "-c", script)
    cli("cp", f"{box}:{place}/t", tmp_path / "t")
    assert (tmp_path / "t" / "out").is_symlink()
    assert list(outside.iterdir()) == []
