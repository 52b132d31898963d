"""Directories of the host in a guest: validation, and the real file server in its jail."""

from __future__ import annotations

import asyncio
import os
import shutil
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from bough.client.spec_files import resolve_sources
from bough.errors import Conflict, HostLacks, InvalidInput, InvalidSpec, NotFound
from bough.guest import agent_spawn, wire
from bough.mounts import server
from bough.mounts.source import check_sources, hidden_below, open_source, resolve_mount
from bough.spec import MountSpec, parse_mount, parse_spec
from bough.spec.mounts import split_mount


@pytest.mark.parametrize(
    ("text", "source", "target", "writable"),
    [
        ("./src:/srv/src", "./src", "/srv/src", False),
        ("/a:/b:ro", "/a", "/b", False),
        ("/a:/b:rw", "/a", "/b", True),
        ("/with:colon:/b:rw", "/with:colon", "/b", True),
        ("rw:/b", "rw", "/b", False),
    ],
)
def test_in_one_word(text: str, source: str, target: str, writable: bool) -> None:
    assert split_mount(text) == {"source": source, "target": target, "writable": writable}


def test_what_is_wrong_is_told() -> None:
    wrong = ["/a:b", {"source": "/a", "target": "/proc/x"}, "/a:/", "rel:/ok", "/a:/etc", "/a:/srv/../etc",
             {"source": "/a", "target": "/b", "cache": "1.5s"}, "/x:/same", "/y:/same/"]  # fmt: skip
    with pytest.raises(InvalidSpec) as caught:
        parse_spec({"image": "debian:12", "mounts": wrong})
    told = {problem["place"]: problem["message"] for problem in caught.value.problems}
    for index, words in enumerate(
        ["SOURCE:TARGET", "/proc is the guest's own", "/ is the guest's own", "absolute path",
         "/etc is the guest's own", "without '.', '..'", "whole seconds"]
    ):  # fmt: skip
        assert any(
            place.startswith(f"mounts[{index}]") and words in message for place, message in told.items()
        ), (index, told)
    assert "already used by mounts[7]" in told["mounts[8]"]


def test_clients_make_sources_absolute(tmp_path: Path) -> None:
    spec = {"mounts": ["src:/srv/a", {"source": "../b", "target": "/srv/b"}, "nonsense"]}
    made = resolve_sources(spec, tmp_path)["mounts"]
    assert made[0] == {"source": f"{tmp_path}/src", "target": "/srv/a", "writable": False}
    assert made[1]["source"] == f"{tmp_path}/../b"
    assert made[2] == "nonsense"


def mount_of(source: Path, *, writable: bool = False) -> MountSpec:
    return parse_mount({"source": str(source), "target": "/srv/a", "writable": writable})


def test_what_can_be_shared(tmp_path: Path) -> None:
    home, real = tmp_path / "own" / "home", tmp_path / "real"
    for path in (home / "machines", real):
        path.mkdir(parents=True)
    (tmp_path / "link").symlink_to(real)
    (tmp_path / "file").touch()
    assert resolve_mount(mount_of(tmp_path / "link"), [home]).source == str(real)
    with pytest.raises(NotFound):
        resolve_mount(mount_of(tmp_path / "absent"), [home])
    for source, writable in ((tmp_path / "file", False), (home / "machines", False), (home.parent, True)):
        with pytest.raises(InvalidInput):
            resolve_mount(mount_of(source, writable=writable), [home])
    resolve_mount(mount_of(home.parent), [home])
    assert hidden_below(str(home.parent), [home, real]) == ["home"]


def test_no_link_is_followed_later(tmp_path: Path) -> None:
    shared = tmp_path / "a" / "b"
    shared.mkdir(parents=True)
    os.close(open_source(str(shared)))
    (tmp_path / "a").rename(tmp_path / "c")
    (tmp_path / "a").symlink_to(tmp_path / "c")
    assert shared.is_dir()
    with pytest.raises(Conflict, match="shares"):
        check_sources([mount_of(shared)], "web")


# -- the server ---------------------------------------------------------------------------------------


class Sftp:
    """The part of SFTP (version 3) that a hostile guest needs."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def ask(self, kind: int, payload: bytes) -> tuple[int, bytes]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        packet = bytes([kind]) + struct.pack(">I", 1) + payload if kind != 1 else b"\1" + payload
        self.process.stdin.write(struct.pack(">I", len(packet)) + packet)
        (length,) = struct.unpack(">I", await self.process.stdout.readexactly(4))
        answer = await self.process.stdout.readexactly(length)
        return answer[0], answer[5:]

    async def status(self, kind: int, payload: bytes) -> int:
        """Return SSH_FX: 0 done, 2 no such file, 3 denied, 4 failed."""
        told, rest = await self.ask(kind, payload)
        return struct.unpack(">I", rest[:4])[0] if told == 101 else 0

    async def open(self, path: str, flags: int, mode: int = 0o644) -> int:
        return await self.status(3, text(path) + struct.pack(">III", flags, 4, mode))


def text(value: str) -> bytes:
    data = value.encode()
    return struct.pack(">I", len(data)) + data


@asynccontextmanager
async def serving(mount: MountSpec, hidden: tuple[Path, ...] = ()) -> AsyncIterator[Sftp]:
    try:
        process = await server.start_server(mount, hidden=hidden, groups=())
    except HostLacks as error:
        pytest.skip(error.message)
    try:
        sftp = Sftp(process)
        await sftp.ask(1, struct.pack(">I", 3))
        yield sftp
    finally:
        await server.end_server(process)


async def test_a_hostile_guest_stays_in_the_directory(tmp_path: Path) -> None:
    shared, outside = tmp_path / "shared", tmp_path / "outside"
    shared.mkdir()
    outside.write_text("secret")
    (shared / "evil").symlink_to(outside)
    (shared / "file").write_text("x")
    (shared / "bough").mkdir()
    (shared / "bough" / "token").write_text("t")
    read, create = 1, 2 | 8
    async with serving(mount_of(shared, writable=True)) as sftp:
        assert await sftp.open("/share/file", read) == 0
        for path in ("/share/evil", str(outside), "/etc/shadow", "/proc/self/mem", "/share/../etc/hosts"):
            assert await sftp.open(path, read) != 0, path
        for path in ("/etc/x", "/x", "/usr/x", "/dev/x"):
            assert await sftp.open(path, create) != 0, path
        assert await sftp.open("/share/new", create) == 0
        assert await sftp.open("/share/suid", create, 0o4755) != 0
        for mode in (0o4755, 0o2755):
            assert await sftp.status(9, text("/share/new") + struct.pack(">II", 4, mode)) != 0
        assert await sftp.status(9, text("/share/new") + struct.pack(">II", 4, 0o755)) == 0
    assert (shared / "new").stat().st_mode & 0o7777 == 0o755
    assert not (shared / "suid").exists()
    async with serving(mount_of(shared), (shared / "bough",)) as sftp:
        assert await sftp.open("/share/file", read) == 0
        assert await sftp.open("/share/bough/token", read) == 2
        assert await sftp.open("/share/other", create) != 0
        assert await sftp.status(13, text("/share/file")) != 0, "removed"
    assert sorted(path.name for path in shared.iterdir()) == ["bough", "evil", "file", "new"]


async def test_another_directory_in_its_place_is_not_served(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    argv = server.render_server(
        server.Programs("/bin/true", shutil.which("bwrap") or "bwrap", shutil.which("setpriv")),
        mount_of(shared),
        ids=(os.getuid(), os.getgid()),
        identity="1:2",
        passwd=9,
        seccomp=None,
    )
    assert argv[argv.index("1:2") - 1] == "sh"
    assert "--ro-bind" in argv[argv.index(str(shared)) - 1]
    assert argv[-1] == "-R"


# -- what the agent does meanwhile --------------------------------------------------------------------


def begin_apart(argv: list[str], **more: object) -> tuple[dict[str, object], bytes, int]:
    """Return the start's report, its output and its wait status."""
    process = agent_spawn.start({"argv": argv, "stdin": False, **more}, apart=True)
    with os.fdopen(process.failure, "rb") as failure, os.fdopen(process.stdout, "rb") as output:
        told = failure.read()
        os.close(process.stderr)
        return wire.decode_map(told) if told else {}, output.read(), os.waitpid(process.pid, 0)[1]


def test_a_command_that_is_started_apart(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("echo $0; pwd\n")
    script.chmod(0o755)
    told, output, status = begin_apart([str(script)], cwd=str(tmp_path))
    assert (told, output.decode().split(), status) == ({}, [str(script), str(tmp_path)], 0)
    for argv, more, words in (
        (["no-such-command"], {}, "no such command"),
        (["true"], {"cwd": str(tmp_path / "absent")}, "absent"),
        ([str(tmp_path)], {}, str(tmp_path)),
    ):
        told, output, status = begin_apart(argv, **more)
        assert words in str(told["message"])
        assert os.WEXITSTATUS(status) == 127
        assert output == b""
