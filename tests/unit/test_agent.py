"""The real agent, as a process of this host, behind the real channel."""

from __future__ import annotations

import ast
import asyncio
import os
import pwd
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from bough.errors import AgentUnavailable, GuestRefused
from bough.guest import agent_login
from bough.guest.channel import AgentChannel
from bough.guest.install import LIBRARY, agent_files
from bough.guest.session import ExecRequest, ExecSession, ExitStatus
from tests.unit.agent_process import is_running, running_agent

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")


@pytest_asyncio.fixture
async def channel() -> AsyncIterator[AgentChannel]:
    async with running_agent() as (channel, _):
        yield channel


async def run(
    channel: AgentChannel, *argv: str, data: bytes | None = None, **options: object
) -> tuple[bytes, bytes, ExitStatus]:
    request = ExecRequest(list(argv), stdin=data is not None, **options)  # type: ignore[arg-type]
    session = await channel.exec(request)
    return await finish(session, data)


async def finish(session: ExecSession, data: bytes | None = None) -> tuple[bytes, bytes, ExitStatus]:
    async def feed() -> None:
        await session.write(data or b"")
        await session.close_stdin()

    streams = {"stdout": bytearray(), "stderr": bytearray()}
    async with asyncio.TaskGroup() as group:
        if data is not None:
            group.create_task(feed())
        async for stream, chunk in session:
            streams[stream] += chunk
    return bytes(streams["stdout"]), bytes(streams["stderr"]), session.exit


async def read_until(session: ExecSession, end: bytes) -> bytes:
    held = b""
    async for _, chunk in session:
        held += chunk
        if end in held:
            return held
    raise AssertionError(f"it ended: {held!r}")


async def until_gone(*pids: int) -> None:
    async with asyncio.timeout(10):
        while any(map(is_running, pids)):  # noqa: ASYNC110 - nobody tells of strangers' children
            await asyncio.sleep(0.005)


async def test_facts_and_ping(channel: AgentChannel) -> None:
    assert channel.facts is not None
    assert channel.facts.kernel == os.uname().release
    assert channel.facts.hostname == os.uname().nodename
    assert 0 < await channel.ping() < 5


async def test_streams_and_exit_code(channel: AgentChannel) -> None:
    assert await run(channel, "sh", "-c", "echo out; echo err >&2; exit 3") == (
        b"out\n",
        b"err\n",
        ExitStatus(3),
    )


async def test_death_by_a_signal(channel: AgentChannel) -> None:
    assert (await run(channel, "sh", "-c", "kill -SEGV $$"))[2] == ExitStatus(signal="SEGV")


async def test_stdin_there_and_back_is_the_same(channel: AgentChannel) -> None:
    data = os.urandom(1 << 20) * 8
    out, _, status = await run(channel, "cat", data=data)
    assert out == data
    assert status == ExitStatus(0)


async def test_no_stdin_is_dev_null(channel: AgentChannel) -> None:
    assert (await run(channel, "cat"))[0] == b""
    assert (await run(channel, "readlink", "/proc/self/fd/0"))[0] == b"/dev/null\n"


async def test_more_input_than_anybody_reads(channel: AgentChannel) -> None:
    assert (await run(channel, "head", "-c", "5", data=b"x" * (8 << 20)))[0] == b"xxxxx"


async def test_fifty_at_once(channel: AgentChannel) -> None:
    data = b"q" * 200_000
    results = await asyncio.gather(
        *(run(channel, "sh", "-c", f"cat; echo {n}", data=data) for n in range(50))
    )
    assert [out[200_000:] for out, _, _ in results] == [b"%d\n" % n for n in range(50)]


async def test_one_that_nobody_reads_stops_no_other(channel: AgentChannel) -> None:
    endless = await channel.exec(ExecRequest(["yes"], stdin=False))
    full = await channel.exec(ExecRequest(["sleep", "1000"]))
    writer = asyncio.create_task(full.write(b"x" * (16 << 20)))
    assert (await run(channel, "echo", "hi"))[0] == b"hi\n"
    assert await channel.ping() < 5
    assert not writer.done()
    await endless.abort()
    await full.abort()
    await writer


async def test_environment_of_a_login(channel: AgentChannel) -> None:
    out = (await run(channel, "env", env={"MINE": "a=b", "EMPTY": ""}))[0].decode()
    environment = dict(line.split("=", 1) for line in out.splitlines())
    me = pwd.getpwuid(os.getuid())
    assert environment["HOME"] == me.pw_dir
    assert environment["USER"] == environment["LOGNAME"] == me.pw_name
    assert environment["SHELL"] == me.pw_shell
    assert environment["MINE"] == "a=b"
    assert environment["EMPTY"] == ""
    assert "/usr/bin" in environment["PATH"]
    assert "TERM" not in environment


async def test_working_directory(channel: AgentChannel, tmp_path: Path) -> None:
    assert (await run(channel, "pwd", cwd=str(tmp_path)))[0].decode().strip() == str(tmp_path)
    (tmp_path / "here").write_text("echo from here\n")
    (tmp_path / "here").chmod(0o755)
    # A script without "#!", found by a relative path.
    assert (await run(channel, "./here", cwd=str(tmp_path)))[0] == b"from here\n"


async def test_nothing_of_the_agent_is_inherited(channel: AgentChannel) -> None:
    out = (await run(channel, "sh", "-c", "ls /proc/self/fd; grep -E 'Sig(Blk|Ign)' /proc/self/status"))[
        0
    ].decode()
    *fds, blocked, ignored = out.splitlines()
    assert fds == ["0", "1", "2", "3"]  # descriptor 3 belongs to ls
    assert int(blocked.split()[1], 16) == 0
    # The C library reserves signals 32 and 33.
    assert int(ignored.split()[1], 16) & ~(3 << 31) == 0


async def test_it_leads_a_session_of_its_own(channel: AgentChannel) -> None:
    out = (await run(channel, "sh", "-c", "cut -d' ' -f1,5,6 /proc/$$/stat"))[0].split()
    assert out[0] == out[1] == out[2]


@pytest.mark.parametrize(
    ("options", "errno"),
    [
        ({"argv": ["no-such-command"]}, "ENOENT"),
        ({"argv": ["/etc/passwd"]}, "EACCES"),
        ({"argv": ["/etc"]}, "EACCES"),
        ({"argv": ["true"], "cwd": "/no/such"}, "ENOENT"),
        ({"argv": ["true"], "user": "no-such-user"}, "ENOENT"),
        ({"argv": ["true"], "user": "root:no-such-group"}, "ENOENT"),
        ({"argv": []}, "EINVAL"),
        ({"argv": ["true", "x" * 131_072]}, "E2BIG"),
        ({"argv": ["true", *["x" * 100_000] * 21]}, "E2BIG"),
        ({"argv": ["true", "a\0b"]}, "EINVAL"),
        ({"argv": ["true"], "env": {"A=B": "x"}}, "EINVAL"),
    ],
)
async def test_what_cannot_start_is_refused(
    channel: AgentChannel, options: dict[str, object], errno: str
) -> None:
    with pytest.raises(GuestRefused) as caught:
        await channel.exec(ExecRequest(**options))  # type: ignore[arg-type]
    assert caught.value.details["errno"] == errno
    assert await channel.ping() < 5


async def test_words_that_are_not_utf_8(channel: AgentChannel, tmp_path: Path) -> None:
    odd = os.fsdecode(b"a\xffb")
    (tmp_path / odd).mkdir()
    script = 'printf "%s %s " "$1" "$ODD"; pwd'
    out, _, _ = await run(channel, "sh", "-c", script, "sh", odd, env={"ODD": odd}, cwd=str(tmp_path / odd))
    assert out == b"a\xffb a\xffb " + os.fsencode(tmp_path) + b"/a\xffb\n"
    with pytest.raises(GuestRefused, match="no such command"):
        await channel.exec(ExecRequest([odd]))


@pytest.mark.parametrize("words", [["w" * 131_071], ["x" * 100_000] * 20, ["y"] * 150_000, [""] * 3000])
async def test_long_commands(channel: AgentChannel, words: list[str]) -> None:
    script = 'echo $# "$ODD"; printf %s "$@" | wc -c'
    out, _, _ = await run(channel, "sh", "-c", script, "sh", *words, env={"ODD": "a=b c"})
    assert out.decode().split() == [str(len(words)), "a=b", "c", str(len("".join(words)))]


async def test_a_program_whose_loader_is_gone(channel: AgentChannel, tmp_path: Path) -> None:
    (tmp_path / "lost").write_text("#!/no/such/loader\n")
    (tmp_path / "lost").chmod(0o755)
    with pytest.raises(GuestRefused, match="lost is there, but its loader") as caught:
        await channel.exec(ExecRequest(["./lost"], cwd=str(tmp_path)))
    assert caught.value.details["errno"] == "ENOENT"
    assert caught.value.message.startswith("./lost: ")


async def test_a_terminal_that_the_guest_does_not_know(channel: AgentChannel) -> None:
    script = ["sh", "-c", "echo $TERM"]
    assert b"xterm" in (await run(channel, *script, tty=True, term="no-such-term"))[0]
    assert (await run(channel, *script, tty=True, term="linux"))[0] == b"linux\r\n"
    asked = {"TERM": "no-such-term"}
    assert (await run(channel, *script, tty=True, env=asked))[0] == b"no-such-term\r\n"


def test_names_in_the_environment_file() -> None:
    before = {"PATH": "/usr/bin", "HOME": "/root"}
    for value, expected in {
        "/opt/bin:$PATH": "/opt/bin:/usr/bin",
        "${PATH}:$HOME/bin": "/usr/bin:/root/bin",
        "$NOT_SET/x": "/x",
        "a$": "a$",
        "$1 $(true) ${": "$1 $(true) ${",
    }.items():
        assert agent_login._expand(value, before) == expected


@AS_ROOT
async def test_another_user(channel: AgentChannel) -> None:
    script = "id -u; id -g; id -G; echo $HOME $USER; grep -E '^(Uid|Gid|CapEff|CapPrm)' /proc/self/status"
    out = (await run(channel, "sh", "-c", script, user="daemon", cwd="/"))[0].decode()
    daemon = pwd.getpwnam("daemon")
    lines = out.splitlines()
    assert lines[:2] == [str(daemon.pw_uid), str(daemon.pw_gid)]
    assert lines[3] == f"{daemon.pw_dir} daemon"
    # Real, effective, saved and file system id: no id of root is left to return to.
    assert lines[4].split()[1:] == [str(daemon.pw_uid)] * 4
    assert lines[5].split()[1:] == [str(daemon.pw_gid)] * 4
    assert [int(line.split()[1], 16) for line in lines[6:]] == [0, 0]
    # The next command runs as root again.
    assert (await run(channel, "id", "-u"))[0] == b"0\n"
    assert (await run(channel, "sh", "-c", "id -u; id -g; id -G", user="4242:4343"))[
        0
    ] == b"4242\n4343\n4343\n"


@AS_ROOT
async def test_another_user_does_not_get_where_he_may_not(channel: AgentChannel, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    with pytest.raises(GuestRefused) as caught:
        await channel.exec(ExecRequest(["true"], user="daemon", cwd=str(closed)))
    assert caught.value.details["errno"] == "EACCES"
    assert (await run(channel, "id", "-u"))[0] == b"0\n"


async def test_terminal(channel: AgentChannel) -> None:
    request = ExecRequest(["sh"], tty=True, rows=33, columns=99, term="vt220", env={"PS1": "$ "})
    session = await channel.exec(request)
    await session.write(b"stty size; echo $TERM\n")
    shown = await read_until(session, b"vt220")
    assert b"33 99" in shown
    await session.resize(44, 111)
    await session.write(b"stty size\n")
    await read_until(session, b"44 111")
    # The guest handles the keys of a terminal. The program's own output, not the echo of the typed text,
    # shows that the program runs in the foreground, where Ctrl-C is sent.
    await session.write(b"sh -c 'echo begun$((1+1)); exec sleep 1000'\n")
    await read_until(session, b"begun2")
    await session.write(b"\x03echo $?; exit 7\n")
    assert (await finish(session))[2] == ExitStatus(7)


async def test_same_addresses(channel: AgentChannel) -> None:
    async def where() -> bytes:
        return (await run(channel, "head", "-1", "/proc/self/maps"))[0]

    for same in (False, True, False):
        channel.same_addresses = same
        assert (await where() == await where() == await where()) is same


async def test_end_of_input_on_a_terminal(channel: AgentChannel) -> None:
    out, _, status = await run(channel, "cat", tty=True, data=b"hello\n")
    assert out == b"hello\r\nhello\r\n"
    assert status == ExitStatus(0)


async def test_signals(channel: AgentChannel) -> None:
    session = await channel.exec(
        ExecRequest(["sh", "-c", "trap 'echo got it; exit 5' USR1; echo ok; sleep 1000 & wait"])
    )
    await read_until(session, b"ok")
    await session.signal("SIGUSR1")
    out, _, status = await finish(session)
    assert (out, status) == (b"got it\n", ExitStatus(5))


async def test_abort_kills_all_of_its_session(channel: AgentChannel) -> None:
    # A job in its own process group, and a job that ignores SIGHUP.
    script = "set -m; sleep 1000 & echo $!; (trap '' HUP; sleep 1001) & echo $!; echo $$; wait"
    session = await channel.exec(ExecRequest(["bash", "-c", script]))
    held = b""
    async for _, chunk in session:
        held += chunk
        if held.count(b"\n") == 3:
            break
    pids = [int(word) for word in held.split()]
    assert all(map(is_running, pids))
    await session.abort()
    await until_gone(*pids)
    assert [chunk async for chunk in session] == []


async def test_a_child_that_lives_on_keeps_nobody_waiting(channel: AgentChannel) -> None:
    out, _, status = await run(channel, "sh", "-c", "sleep 1000 & echo $!")
    assert status == ExitStatus(0)
    pid = int(out)
    assert is_running(pid)
    os.kill(pid, 9)


async def test_last_words_are_not_lost(channel: AgentChannel) -> None:
    for _ in range(20):
        out, _, _ = await run(channel, "sh", "-c", "head -c 60000 /dev/zero; sleep 5 & exit 0")
        assert len(out) == 60000


async def test_tunnel(channel: AgentChannel) -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.write(b"the end")
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    tunnel = await channel.dial(port)
    data = os.urandom(2 << 20)

    async def send() -> None:
        await tunnel.write(data)
        await tunnel.write_eof()

    sender = asyncio.create_task(send())
    back = bytearray()
    while chunk := await tunnel.read():
        back += chunk
    await sender
    assert bytes(back) == data + b"the end"
    server.close()


async def test_tunnel_to_nowhere(channel: AgentChannel) -> None:
    with pytest.raises(GuestRefused) as caught:
        await channel.dial(1)
    assert caught.value.details["errno"] == "ECONNREFUSED"
    with pytest.raises(GuestRefused):
        await channel.dial(80, "example.invalid")


async def test_operations(channel: AgentChannel) -> None:
    figures = await channel.call("load", {}, 10)
    assert figures["memory_total_bytes"] > figures["memory_available_bytes"] > 0
    with pytest.raises(GuestRefused, match="knows no operation") as caught:
        await channel.call("no-such-thing", {"x": "y" * 100_000}, 10)
    assert caught.value.details["errno"] == "ENOSYS"
    assert await channel.call("thaw", {}, 10) == {"held": False}


async def test_a_new_hello_ends_what_was_before() -> None:
    async with running_agent() as (channel, _):
        session = await channel.exec(ExecRequest(["sh", "-c", "echo $$; exec sleep 1000"]))
        pid = int(await read_until(session, b"\n"))
        pending = asyncio.create_task(finish(session))
        await asyncio.sleep(0)
        await channel.hello(10)
        status = (await pending)[2]
        assert isinstance(status.error, AgentUnavailable)
        await until_gone(pid)
        assert (await run(channel, "echo", "again"))[0] == b"again\n"


async def test_the_end_of_the_host_ends_the_commands() -> None:
    async with running_agent() as (channel, _):
        session = await channel.exec(ExecRequest(["sh", "-c", "echo $$; exec sleep 1000"]))
        pid = int(await read_until(session, b"\n"))
        await channel.close()
        assert channel.lost.is_set()
        await until_gone(pid)
        with pytest.raises(AgentUnavailable):
            await channel.ping()


async def test_a_greeting_in_the_middle_of_a_frame() -> None:
    """The agent hears the next service after one was killed in the middle of a frame."""
    async with running_agent() as (channel, agent):
        session = await channel.exec(ExecRequest(["cat"]))
        header = (
            b"\x6b\xb0\x0d\x00"
            + channel._handshake.nonce.to_bytes(4, "little")
            + session.id.to_bytes(4, "little")
        )
        agent.host_end.send(header + (30000).to_bytes(4, "little") + b"half")
        facts = await channel.hello(10)
        assert facts.kernel == os.uname().release
        assert (await run(channel, "echo", "hi"))[0] == b"hi\n"


async def test_an_idle_agent_sleeps() -> None:
    async with running_agent() as (channel, agent):
        await run(channel, "true")

        def switches() -> int:
            status = Path(f"/proc/{agent.process.pid}/status").read_text()
            return int(status.split("\nvoluntary_ctxt_switches:")[1].split()[0])

        await channel.ping()
        await asyncio.sleep(0.1)  # the agent answers before it sleeps
        before = switches()
        await asyncio.sleep(0.3)
        assert switches() == before


async def test_loads_little_where_it_is_installed(tmp_path: Path) -> None:
    """Each boot of an emulated guest pays for the agent's imports."""
    for file in agent_files():
        path = tmp_path / file.path.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.content)
    library = str(tmp_path / LIBRARY.lstrip("/"))
    code = f"import sys; sys.path.insert(0, {library!r}); from bough.guest import agent; print(*sys.modules)"
    process = await asyncio.create_subprocess_exec(sys.executable, "-I", "-S", "-c", code, stdout=-1)
    loaded = set((await process.communicate())[0].decode().split())
    assert "bough.guest.agent_session" in loaded
    heavy = {
        "json",
        "re",
        "socket",
        "subprocess",
        "selectors",
        "signal",
        "enum",
        "typing",
        "pathlib",
        "contextlib",
    }
    assert not loaded & heavy


def test_only_the_standard_library_of_python_3_7() -> None:
    for file in agent_files():
        if file.path.endswith(".py"):
            ast.parse(file.content, feature_version=(3, 7))
            names = {
                alias.name.split(".")[0]
                for node in ast.walk(ast.parse(file.content))
                if isinstance(node, ast.Import)
                for alias in node.names
            }
            assert names <= {*sys.stdlib_module_names, "bough"}
