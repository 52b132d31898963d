"""The container program: bough's init and the agent, as processes of this host that are not process 1."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from bough.errors import AgentUnavailable, GuestRefused
from bough.guest import agent_init_program, agent_init_setup
from bough.guest.agent_events import parse_uevent
from bough.guest.agent_init_door import pack, unpack
from bough.guest.channel import AgentChannel
from bough.guest.wire import WireError
from tests.unit.agent_process import SOURCE, is_running

START = """
import os, sys
sys.path.insert(0, {source!r})
from bough.guest import agent_init_end, agent_init_process, agent_init_setup, agent_program
agent_init_setup.RUN = agent_program.place = {place!r}
agent_init_setup.load_drivers = agent_init_setup.catch_ctrl_alt_del = lambda: None
agent_init_setup.say = lambda text: print(text, file=sys.stderr, flush=True)
agent_init_process.Console.__init__.__defaults__ = ({place!r} + "/console",)
agent_init_process._PROGRAM_S = agent_init_process._TAKE_S = {seconds}
def become_agent(*, again):
    from bough.guest import agent
    os._exit(agent.main(["--fd", "{fd}"]))
def end_guest(*, restarts, grace_s):
    open({place!r} + "/end", "w").write("restart" if restarts else "power off")
    os._exit(0)
agent_init_process._become_agent = become_agent
agent_init_end.end_guest = end_guest
process = agent_init_process.InitProcess()
while True:
    try:
        process.run()
    except Exception as error:
        agent_init_setup.say(f"init goes on after {{error!r}}")
"""


class Guest:
    """A guest of bough's init. `end` tells how it ended."""

    def __init__(self, place: Path, seconds: float = 20) -> None:
        self.place = place
        (place / "console").touch()
        self.host_end, self._guest_end = socket.socketpair()
        fd = self._guest_end.fileno()
        code = START.format(source=str(SOURCE), place=str(place), seconds=seconds, fd=fd)
        with (place / "errors").open("wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", code],
                pass_fds=[fd],
                stdin=subprocess.DEVNULL,
                stderr=errors,
            )

    @property
    def console(self) -> bytes:
        return (self.place / "console").read_bytes()

    async def until_ended(self) -> str:
        """Return how the guest ended, and check that no error was caught."""
        await asyncio.to_thread(self.process.wait, timeout=20)
        assert (self.place / "errors").read_bytes() == b""
        return (self.place / "end").read_text()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.host_end.close()
        self._guest_end.close()


@pytest.fixture
async def guest(tmp_path: Path) -> AsyncIterator[tuple[AgentChannel, Guest]]:
    guest = Guest(tmp_path)
    channel = AgentChannel(guest.host_end, machine="test")
    try:
        await channel.hello(20)
        yield channel, guest
    finally:
        await channel.close()
        guest.close()


async def start(channel: AgentChannel, script: str, **more: Any) -> int:
    answer = await channel.call("start_program", {"argv": ["/bin/sh", "-c", script], **more}, timeout_s=20)
    pid: int = answer["pid"]
    return pid


async def test_output_and_status_of_a_program(guest: tuple[AgentChannel, Guest]) -> None:
    channel, machine = guest
    cwd = str(machine.place / "made/too")
    waiting = asyncio.create_task(channel.call("await_program", {}, timeout_s=20))
    await start(channel, "pwd; echo $A; echo wrong >&2; exit 7", env={"A": "b c"}, cwd=cwd)
    assert await waiting == {"code": 7, "output": f"{cwd}\nb c\nwrong\n".encode()}
    assert await machine.until_ended() == "power off"
    assert machine.console == f"{cwd}\nb c\nwrong\n".encode()


async def test_a_second_start_answers_the_same_process(guest: tuple[AgentChannel, Guest]) -> None:
    channel, machine = guest
    pid = await start(channel, "exec sleep 60")
    assert await start(channel, "echo other") == pid
    os.kill(pid, signal.SIGKILL)
    assert await channel.call("await_program", {}, timeout_s=20) == {"signal": "KILL", "output": b""}
    assert await machine.until_ended() == "power off"
    assert machine.console == b""


async def test_a_program_that_cannot_be_started(guest: tuple[AgentChannel, Guest]) -> None:
    channel, machine = guest
    for request, text in (
        ({"argv": ["no-such-program"]}, "no-such-program"),
        ({"argv": ["/etc"]}, "/etc"),
        ({"argv": []}, "no command"),
        ({"argv": ["true"], "user": "nobody-here"}, "nobody-here"),
        ({"argv": ["true"], "cwd": "/etc/hostname/x"}, "/etc/hostname/x"),
    ):
        with pytest.raises(GuestRefused, match=text):
            await channel.call("start_program", request, timeout_s=20)
    assert await start(channel, "exec sleep 60") > 0, "the host may try another one"
    assert machine.process.poll() is None


async def test_the_last_output_is_kept_and_all_of_it_is_on_the_console(
    guest: tuple[AgentChannel, Guest],
) -> None:
    channel, machine = guest
    await start(channel, "seq 100000; echo end")
    output = (await channel.call("await_program", {}, timeout_s=20))["output"]
    assert len(output) == agent_init_program.TAIL_BYTES
    assert output.endswith(b"100000\nend\n")
    assert await machine.until_ended() == "power off"
    assert machine.console == b"".join(b"%d\n" % n for n in range(1, 100001)) + b"end\n"


async def test_a_child_that_holds_the_output_open_does_not_delay_the_end(
    guest: tuple[AgentChannel, Guest],
) -> None:
    channel, machine = guest
    pid = await start(channel, "sleep 60 & echo $!; exit 2")
    answer = await channel.call("await_program", {}, timeout_s=20)
    assert answer["code"] == 2
    assert await machine.until_ended() == "power off"
    assert not is_running(pid)
    os.kill(int(answer["output"]), signal.SIGKILL)


async def test_an_end_that_nobody_takes_powers_off_all_the_same(tmp_path: Path) -> None:
    machine = Guest(tmp_path, seconds=0.2)
    channel = AgentChannel(machine.host_end, machine="test")
    try:
        await channel.hello(20)
        await start(channel, "exit 0")
        assert await machine.until_ended() == "power off"
    finally:
        await channel.close()
        machine.close()


@pytest.mark.parametrize(
    ("number", "end"),
    [(signal.SIGUSR2, "power off"), (signal.SIGTERM, "restart"), (signal.SIGINT, "restart")],
)
async def test_the_program_gets_its_stop_signal(
    guest: tuple[AgentChannel, Guest], number: int, end: str
) -> None:
    channel, machine = guest
    waiting = asyncio.create_task(channel.call("await_program", {}, timeout_s=20))
    script = "trap 'echo stopping; exit 5' QUIT; echo begun; while :; do sleep 0.05; done"
    await start(channel, script, stop_signal="QUIT")
    async with asyncio.timeout(20):
        while b"begun" not in machine.console:  # noqa: ASYNC110 - nobody tells of it
            await asyncio.sleep(0.01)
    machine.process.send_signal(number)
    assert await waiting == {"code": 5, "output": b"begun\nstopping\n"}
    assert await machine.until_ended() == end


async def test_a_program_that_ignores_its_stop_signal_is_killed(tmp_path: Path) -> None:
    machine = Guest(tmp_path, seconds=0.2)
    channel = AgentChannel(machine.host_end, machine="test")
    try:
        await channel.hello(20)
        pid = await start(channel, "trap '' TERM; while :; do sleep 0.05; done")
        machine.process.send_signal(signal.SIGUSR2)
        assert await machine.until_ended() == "power off"
        async with asyncio.timeout(20):
            while is_running(pid):  # noqa: ASYNC110 - nobody tells of it
                await asyncio.sleep(0.01)
    finally:
        await channel.close()
        machine.close()


async def test_a_killed_agent_is_started_again_and_asks_again(guest: tuple[AgentChannel, Guest]) -> None:
    channel, machine = guest
    waiting = asyncio.create_task(channel.call("await_program", {}, timeout_s=20))
    pid = await start(channel, "exec sleep 60")
    (agent,) = (
        int(one)
        for one in Path(f"/proc/{machine.process.pid}/task/{machine.process.pid}/children")
        .read_text()
        .split()
        if int(one) != pid
    )
    os.kill(agent, signal.SIGKILL)
    with pytest.raises(AgentUnavailable):
        await waiting
    await channel.hello(20)
    assert await start(channel, "echo other") == pid
    os.kill(pid, signal.SIGTERM)
    assert (await channel.call("await_program", {}, timeout_s=20))["signal"] == "TERM"
    assert await machine.until_ended() == "power off"


async def test_a_guest_with_another_init_runs_no_program() -> None:
    from tests.unit.agent_process import running_agent

    async with running_agent() as (channel, _):
        for operation in ("start_program", "await_program"):
            with pytest.raises(GuestRefused, match="only a guest with bough's init"):
                await channel.call(operation, {"argv": ["true"]}, timeout_s=20)


async def test_nonsense_at_the_door_harms_nothing(guest: tuple[AgentChannel, Guest]) -> None:
    channel, machine = guest
    path = str(machine.place / "init.sock")
    for data in (
        b"",
        b"\xff\xff\xff\xff",
        b"\x01\0\0\0\xff",
        pack({"operation": "dance"}),
        pack({}),
        b"\x09\0",
    ):
        with socket.socket(socket.AF_UNIX) as visitor:
            visitor.connect(path)
            visitor.send(data)
    many = [socket.socket(socket.AF_UNIX) for _ in range(60)]
    for visitor in many:
        with contextlib.suppress(OSError):
            visitor.connect(path)
    pid = await start(channel, "exec sleep 60")
    for visitor in many:
        visitor.close()
    os.kill(pid, signal.SIGTERM)
    assert (await channel.call("await_program", {}, timeout_s=20))["signal"] == "TERM"
    assert await machine.until_ended() == "power off"


# -- parts ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "number"),
    [
        *(("TERM", 15), ("SIGQUIT", 3), ("quit", 3), ("RTMIN+3", 37), ("SIGRTMIN+3", 37), ("9", 9), (9, 9)),
        *(("", 15), (None, 15), ("NONSENSE", 15), ("0", 15), ("999", 15), ("-1", 15), ("TERM+x", 15)),
    ],
)
def test_stop_signals(text: object, number: int) -> None:
    assert agent_init_program.parse_signal(text) == number


def test_messages_in_pieces() -> None:
    whole = pack({"a": 1}) + pack({"b": b"x" * 1000})
    for cut in range(len(whole)):
        held, found = b"", []
        for part in (whole[:cut], whole[cut:]):
            held += part
            while True:
                message, held = unpack(held)
                if message is None:
                    break
                found.append(message)
        assert found == [{"a": 1}, {"b": b"x" * 1000}]
    with pytest.raises(WireError):
        unpack(b"\xff\xff\xff\xff")


def structure(kind: int, *strings: bytes, size: int = 5) -> bytes:
    texts = b"".join(one + b"\0" for one in strings) or b"\0"
    return bytes([kind, size]) + bytes(size - 2) + texts + b"\0"


def test_the_words_of_an_image_init(tmp_path: Path) -> None:
    table = tmp_path / "DMI"
    words = [b"bough.init=/sbin/init", b"other", b"bough.init=--log-level=info", b"bough.init="]
    table.write_bytes(structure(0, b"SeaBIOS", size=24) + structure(11, *words) + structure(127))
    found = agent_init_setup.find_image_init(str(table))
    assert found == ["/sbin/init", "--log-level=info", ""]
    assert agent_init_setup.find_image_init(str(tmp_path / "missing")) == []
    for damaged in (b"", b"\x0b", b"\x0b\xff\0\0", structure(11, *words)[:-3], bytes(100), b"\xff" * 100):
        table.write_bytes(damaged)
        assert agent_init_setup.find_image_init(str(table)) in ([], found)


def test_devices_without_a_driver(tmp_path: Path) -> None:
    def device(bus: str, name: str, alias: str, *, kind: str = "", driver: bool = False) -> None:
        place = tmp_path / f"sys/bus/{bus}/devices/{name}"
        place.mkdir(parents=True)
        (place / "modalias").write_text(alias + "\n")
        if kind:
            (place / "class").write_text(kind + "\n")
        if driver:
            (place / "driver").mkdir()

    assert agent_init_setup.find_aliases(str(tmp_path)) == ([], False)
    device("acpi", "PNP0C0C:00", "acpi:PNP0C0C:")
    device("virtio", "virtio0", "virtio:d00000005v00001AF4", driver=True)
    assert agent_init_setup.find_aliases(str(tmp_path)) == (["acpi:PNP0C0C:"], False)
    device("pci", "0000:00:01.0", "pci:v00008086d0000100E", kind="0x020000")
    assert agent_init_setup.find_aliases(str(tmp_path)) == (
        ["acpi:PNP0C0C:", "pci:v00008086d0000100E"], True
    )  # fmt: skip


def test_an_event_of_the_kernel() -> None:
    message = b"add@/devices/x\0ACTION=add\0DEVPATH=/devices/x\0SUBSYSTEM=cpu\0nonsense\0\xff=\xff\0"
    assert parse_uevent(message) == {
        "ACTION": "add", "DEVPATH": "/devices/x", "SUBSYSTEM": "cpu", "\ufffd": "\ufffd",
    }  # fmt: skip
    assert parse_uevent(b"") == {}
