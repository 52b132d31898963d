"""`bough cp` onto existing entries in a real guest: links, mounts, full disks, and kept attributes."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.conftest import Cli
from tests.waiting import wait_until

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may")


@pytest.fixture
def place(cli: Cli, box: str) -> Iterator[str]:
    """Yield an empty directory in the guest."""
    path = cli.text("exec", box, "--", "mktemp", "-d")
    yield path
    script = f"umount -q {path}/* 2>/dev/null; rm -rf {path}"
    cli("exec", box, "--", "sh", "-c", script)


def run(cli: Cli, box: str, script: str) -> str:
    return cli.text("exec", box, "--", "sh", "-c", f"set -e; {script}")


def test_an_overlay_does_not_take_lib_away(cli: Cli, box: str, tmp_path: Path) -> None:
    """/lib of a Debian is a link. A guest with a directory there never boots again."""
    overlay = tmp_path / "overlay"
    (overlay / "lib").mkdir(parents=True)
    (overlay / "lib/file").touch()
    (overlay / "tmp").mkdir(0o755)
    (overlay / "overlay-file").write_text("copied")
    overlay.chmod(0o700)
    told = cli.error("cp", f"{overlay}/.", f"{box}:/", says="not copied: /lib", hint="the link leads to")
    assert "a link is there" in told
    script = "readlink /lib; stat -c %a / /tmp; cat /overlay-file; rm /overlay-file"
    assert run(cli, box, script).split("\n") == ["usr/lib", "755", "1777", "copied"]


def test_a_release_link_is_replaced_by_a_link_only(cli: Cli, box: str, place: str, tmp_path: Path) -> None:
    run(cli, box, f"cd {place}; mkdir -p s/1 s/2; echo one > s/1/file; ln -s 1 s/current")
    (tmp_path / "s").mkdir()
    (tmp_path / "s/current").mkdir()
    cli.error("cp", tmp_path / "s", f"{box}:{place}", says="a link is there")
    (tmp_path / "s/current").rmdir()
    (tmp_path / "s/current").touch()
    cli.error("cp", tmp_path / "s", f"{box}:{place}", says="a link to a directory is there")
    (tmp_path / "s/current").unlink()
    (tmp_path / "s/current").symlink_to("2")
    cli("cp", tmp_path / "s", f"{box}:{place}")
    assert run(cli, box, f"cd {place}/s; readlink current; cat 1/file").split("\n") == ["2", "one"]


def test_a_link_on_the_host_stays_as_well(cli: Cli, box: str, place: str, tmp_path: Path) -> None:
    (tmp_path / "to").mkdir()
    (tmp_path / "away").mkdir()
    (tmp_path / "to/lib").symlink_to(tmp_path / "away")
    run(cli, box, f"mkdir {place}/lib; touch {place}/lib/file {place}/other")
    cli.error("cp", f"{box}:{place}/.", tmp_path / "to", says="a link is there")
    assert (tmp_path / "to/lib").is_symlink()
    assert list((tmp_path / "away").iterdir()) == []
    assert (tmp_path / "to/other").exists()


def test_mount_points(cli: Cli, box: str, place: str, tmp_path: Path) -> None:
    run(cli, box, f"cd {place}; mkdir m; mount -t tmpfs tmpfs m; touch f g; mount --bind g f; echo g > g")
    (tmp_path / "t/m").mkdir(parents=True)
    (tmp_path / "t/m/inside").write_text("in the mount")
    (tmp_path / "t/f").write_text("new")
    cli("cp", f"{tmp_path}/t/.", f"{box}:{place}")
    script = f"cd {place}; mountpoint -q m; mountpoint -q f; cat m/inside f g; ls -A . m"
    assert run(cli, box, script) == "in the mountnewnew.:\nf\ng\nm\n\nm:\ninside"


def test_a_target_that_is_full_or_read_only_half_way(cli: Cli, box: str, place: str, tmp_path: Path) -> None:
    run(cli, box, f"mkdir {place}/m; mount -t tmpfs -o size=1m tmpfs {place}/m; echo old > {place}/m/b")
    (tmp_path / "a").write_text("small")
    (tmp_path / "b").write_bytes(bytes(range(256)) * 16384)
    before = f"cd {place}/m; ls -A; cat a b"
    cli.error("cp", tmp_path / "a", tmp_path / "b", f"{box}:{place}/m", says=f"no space left for {place}/m/b")
    assert run(cli, box, before) == "a\nb\nsmallold"
    run(cli, box, f"mount -o remount,ro {place}/m")
    cli.error("cp", tmp_path / "a", f"{box}:{place}/m", says="Read-only file system")
    assert run(cli, box, before) == "a\nb\nsmallold"


def test_a_client_that_is_killed_leaves_nothing_half_made(
    cli: Cli, box: str, place: str, tmp_path: Path
) -> None:
    run(cli, box, f"echo old > {place}/big")
    with (tmp_path / "big").open("wb") as file:
        for _ in range(300):
            file.write(os.urandom(1 << 20))
    client = cli.popen("cp", tmp_path / "big", f"{box}:{place}/big")
    used = "df --output=used -k / | tail -1"
    begun = int(run(cli, box, used))
    wait_until(lambda: int(run(cli, box, used)) > begun + 5000, timeout_s=120)
    client.send_signal(signal.SIGKILL)
    client.wait()
    wait_until(lambda: "bough.client" not in run(cli, box, "ps -eo args"), timeout_s=60)
    assert run(cli, box, f"cd {place}; ls -A; cat big") == "big\nold"


def test_several_sources(cli: Cli, box: str, place: str, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b/inside").write_text("b")
    cli("cp", tmp_path / "a", tmp_path / "b", f"{box}:{place}/")
    assert run(cli, box, f"cd {place}; cat a b/inside") == "ab"
    (tmp_path / "to").mkdir()
    cli("cp", f"{box}:{place}/a", f"{box}:{place}/b", tmp_path / "to")
    assert (tmp_path / "to/b/inside").read_text() == "b"
    cli.error("cp", f"{box}:{place}/a", f"{box}:{place}/b", tmp_path / "absent", says="no directory")
    cli.error("cp", tmp_path / "a", tmp_path / "b", f"{box}:{place}/absent", says="not a directory")
    cli.error("cp", tmp_path / "a", f"{box}:{place}/b", f"{box}:{place}", says="one of the two")
    cli.error("cp", "-", tmp_path / "a", f"{box}:{place}", says="one file")


def test_names_that_are_no_utf_8(cli: Cli, box: str, place: str, tmp_path: Path) -> None:
    odd = os.fsdecode(b"caf\xe9 \xff\n")
    (tmp_path / odd).write_text("content")
    cli("cp", tmp_path / odd, f"{box}:{place}/{odd}")
    assert run(cli, box, f"ls -b {place}") == r"caf\351\ \377\n"
    cli("cp", f"{box}:{place}/{odd}", tmp_path / "back")
    assert (tmp_path / "back").read_text() == "content"
    assert cli("cp", f"{box}:{place}/{odd}", "-").stdout == b"content"
    cli("cp", "-", f"{box}:{place}/{odd}2", stdin=b"piped")
    assert run(cli, box, f"cat {place}/*2") == "piped"
    cli.error("cp", f"{box}:{place}/{odd}3", tmp_path, says="no file")


def test_a_tree_of_a_thousand_levels(cli: Cli, box: str, place: str, tmp_path: Path) -> None:
    deep = tmp_path / "tree"
    try:
        deep.mkdir()
        for _ in range(1000):
            deep = deep / "d"
            deep.mkdir()
        (deep / "file").write_text("deep")
        cli("cp", tmp_path / "tree", f"{box}:{place}/tree")
        assert run(cli, box, f"find {place}/tree -name file -printf %d") == "1001"
        cli("cp", f"{box}:{place}/tree", tmp_path / "back")
        assert (tmp_path / "back" / deep.relative_to(tmp_path / "tree") / "file").read_text() == "deep"
    finally:  # pytest would recurse
        subprocess.run(["rm", "-rf", tmp_path / "tree", tmp_path / "back"], check=True)


ACL = "02000000 01000600ffffffff 02000600d2040000 04000400ffffffff 10000600ffffffff 20000400ffffffff"
CAPABILITY = "0100000200200000000000000000000000000000"
#: Prints mode, owner and names of attributes of a path.
LOOK = """
import os, sys
for path in sys.argv[1:]:
    info = os.lstat(path)
    print(oct(info.st_mode & 0o7777), info.st_uid, *sorted(os.listxattr(path, follow_symlinks=False)))
"""
MAKE = f"""
import os, socket, sys
os.chdir(sys.argv[1])
os.mkdir("tree")
os.chmod("tree", 0o1777)
os.chdir("tree")
for name in ("program", "theirs"):
    open(name, "w").close()
os.setxattr("program", "user.note", b"any\\0bytes")
os.setxattr("program", "system.posix_acl_access", bytes.fromhex("{ACL}"))
os.chown("theirs", 1234, 1234)
os.chmod("theirs", 0o4755)
os.setxattr("theirs", "security.capability", bytes.fromhex("{CAPABILITY}"))
os.mkfifo("pipe")
socket.socket(socket.AF_UNIX).bind("socket")
"""
PLAIN = [
    "0o1777 0",
    "0o664 0 system.posix_acl_access user.note",
    "0o755 0",
]
OWNED = [*PLAIN[:2], "0o4755 1234 security.capability"]


@as_root
def test_what_is_kept_and_what_is_told(cli: Cli, box: str, place: str, tmp_path: Path) -> None:
    names = ("", "/program", "/theirs")
    cli("exec", box, "--", "python3", "-c", MAKE, place)
    for options, expected in ((["--owner"], OWNED), ([], PLAIN)):
        there, back = tmp_path / f"there{len(options)}", f"{place}/back{len(options)}"
        told = cli("cp", *options, f"{box}:{place}/tree", there).stderr.decode()
        assert "warning: left out 1 pipe: " in told
        assert "warning: left out 1 socket: " in told
        lost = ("the owner of", "set-user-id or set-group-id bit of", "the capabilities of")
        assert [f"did not keep {word}" in told or word in told for word in lost] == [not options] * 3, told
        assert sorted(path.name for path in there.iterdir()) == ["program", "theirs"]
        found = [
            " ".join([oct(stat.S_IMODE(i.st_mode)), str(i.st_uid), *sorted(os.listxattr(p))])
            for p, i in ((p, p.stat()) for p in (Path(f"{there}{name}") for name in names))
        ]
        assert found == expected
        told = cli("cp", *options, there, f"{box}:{back}").stderr.decode()
        assert told == ""
        looked = cli.text("exec", box, "--", "python3", "-c", LOOK, *(back + name for name in names))
        assert looked.split("\n") == expected


def test_sockets_and_pipes_of_the_host_are_told(cli: Cli, box: str, place: str, tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    os.mkfifo(tmp_path / "t/pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "t/socket"))
        told = cli("cp", tmp_path / "t", f"{box}:{place}").stderr.decode()
    assert told.split("\n")[:2] == [
        f"warning: left out 1 pipe: {tmp_path}/t/pipe",
        f"warning: left out 1 socket: {tmp_path}/t/socket",
    ]


@as_root
def test_owner_needs_root(cli: Cli, box: str, place: str, tmp_path: Path) -> None:
    """Root keeps owners; the refusal for other users is in tests/unit."""
    (tmp_path / "file").write_text("x")
    os.chown(tmp_path / "file", 1234, 5678)
    cli("cp", "--owner", tmp_path / "file", f"{box}:{place}/file")
    assert run(cli, box, f"stat -c %u:%g {place}/file") == "1234:5678"
