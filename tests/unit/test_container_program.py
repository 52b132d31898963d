"""The program of a machine: its start by the agent, its end, and what the record says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Mapping
from typing import Any, TypeVar, cast

import pytest

from bough.errors import AgentUnavailable, BoughError, Conflict, GuestRefused
from bough.guest.channel import AgentChannel
from bough.machines import program as module
from bough.machines.program import ContainerProgram
from bough.machines.record import Hardware, MachineRecord, ProgramRun
from bough.spec import parse_spec
from bough.spec.container import DEFAULT_PATH, Container

T = TypeVar("T")
IMAGE = Container(
    reference="docker://docker.io/library/x:latest",
    digest="sha256:0",
    entrypoint=("/entry",),
    cmd=("serve",),
    env={"A": "1"},
    user="www",
    workdir="/srv",
    stop_signal="QUIT",
)


class Facts:
    boot_id = "boot-1"


class Agent:
    """An agent whose program ends when the test says so."""

    facts = Facts()

    def __init__(self) -> None:
        self.started: list[Mapping[str, Any]] = []
        self.refuses: BoughError | None = None
        self.end: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self.waits = 0

    async def call(
        self, operation: str, arguments: Mapping[str, Any], timeout_s: float, *, exact: bool = False
    ) -> dict[str, Any]:
        if operation == "start_program":
            if self.refuses is not None:
                raise self.refuses
            self.started.append(arguments)
            return {"pid": 40 + len(self.started)}
        assert operation == "await_program"
        self.waits += 1
        return await asyncio.shield(self.end)


class Host:
    """A machine of which only the record is real."""

    name = "web"

    def __init__(self, container: Container | None = IMAGE, **settings: Any) -> None:
        hardware = Hardware.model_construct(nics=[])
        self.record = MachineRecord.model_construct(
            id="a", name="web", spec=parse_spec({"image": "x", **settings}), container=container,
            hardware=hardware, program=None, throw_away=False, role=None, domain=None, suspended=None,
        )  # fmt: skip
        self.told: list[tuple[str, str]] = []
        self.given_up: list[str] = []
        self.busy = 0
        self.tasks: list[asyncio.Task[Any]] = []

    def change(self, *, event: bool = False, **fields: Any) -> None:
        self.record = self.record.model_copy(update=fields)

    def note(self, **fields: Any) -> bool:
        self.change(**fields)
        return True

    def tell(self, kind: str, detail: str = "") -> None:
        self.told.append((kind, detail))

    def own(self, work: Coroutine[Any, Any, T], what: str) -> asyncio.Task[T]:
        self.tasks.append(asyncio.create_task(work))
        return self.tasks[-1]

    async def give_up(self, why: str) -> None:
        if self.busy:
            self.busy -= 1
            raise Conflict("machine 'web' is starting just now")
        self.given_up.append(why)


class Scene:
    def __init__(self, **settings: Any) -> None:
        self.host = Host(**settings)
        self.agent = Agent()
        self.program = ContainerProgram(self.host)

    @property
    def run(self) -> ProgramRun:
        assert self.host.record.program is not None
        return self.host.record.program

    def boot(self) -> None:
        self.host.change(program=self.program.at_boot())

    async def follow(self) -> bool:
        return await self.program.follow(cast(AgentChannel, self.agent))

    async def ended(self) -> None:
        async with asyncio.timeout(5):
            while not self.run.is_over:  # noqa: ASYNC110
                await asyncio.sleep(0)


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AT_ONCE_S", 0.02)
    monkeypatch.setattr(module, "_RETRY_S", 0.001)


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    made = Scene()
    yield made
    for task in made.host.tasks:
        task.cancel()


async def test_a_boot_starts_the_program(scene: Scene) -> None:
    scene.boot()
    assert scene.run.state == "waits"
    assert await scene.follow()
    assert scene.agent.started == [
        {
            "argv": ["/entry", "serve"],
            "env": {"PATH": DEFAULT_PATH, "HOSTNAME": "web", "A": "1"},
            "cwd": "/srv",
            "user": "www",
            "stop_signal": "QUIT",
            "as_image": True,
        }
    ]
    assert (scene.run.state, scene.run.pid, scene.run.boot) == ("runs", 41, "boot-1")
    scene.agent.end.set_result({"code": 3, "output": b"bye\x1b[2J\n"})
    await scene.ended()
    assert (scene.run.code, scene.run.signal, scene.run.has_failed) == (3, None, True)
    assert scene.run.output == "bye\N{REPLACEMENT CHARACTER}[2J\n"
    assert scene.host.told == [
        ("program-started", "/entry serve"),
        ("program-ended", "ended with exit status 3"),
    ]


async def test_a_new_service_and_a_fork_start_no_second_program(scene: Scene) -> None:
    scene.boot()
    assert await scene.follow()
    again = ContainerProgram(scene.host)
    assert await again.follow(cast(AgentChannel, scene.agent))
    await asyncio.sleep(0)
    assert (len(scene.agent.started), scene.agent.waits) == (1, 2)


async def test_a_reboot_of_the_guest_starts_the_program_again(scene: Scene) -> None:
    scene.boot()
    assert await scene.follow()
    scene.agent.end.set_result({"code": 5})  # by its stop signal
    await scene.ended()
    scene.agent = Agent()
    scene.agent.facts = type("Later", (), {"boot_id": "boot-2"})()
    assert await scene.follow()
    assert len(scene.agent.started) == 1
    assert (scene.run.boot, scene.run.state, scene.run.code) == ("boot-2", "runs", None)


async def test_a_program_that_ends_at_once(scene: Scene) -> None:
    scene.boot()
    scene.agent.end.set_result({"signal": "SEGV", "output": "oops"})
    assert not await scene.follow()
    error = scene.program.error()
    assert error is not None
    assert error.message == "machine 'web' does not run: its program was ended by signal SEGV"
    assert error.hint == "the whole output: bough logs web"
    assert error.details["output"] == "oops"
    assert not await scene.follow()  # the guest is about to power off
    assert len(scene.agent.started) == 1


async def test_a_program_that_ended_well_at_once_gets_another_hint(scene: Scene) -> None:
    scene.boot()
    scene.agent.end.set_result({"code": 0})
    assert not await scene.follow()
    error = scene.program.error()
    assert error is not None
    assert "sleep infinity" in str(error.hint)


@pytest.mark.parametrize(
    ("refusal", "code"),
    [
        (GuestRefused("/entry: No such file or directory", errno="ENOENT"), 127),
        (GuestRefused("/entry: Permission denied", errno="EACCES"), 126),
        (GuestRefused("the guest has no user 'www'", errno="ENOENT"), 126),
    ],
)
async def test_a_program_that_does_not_start(scene: Scene, refusal: GuestRefused, code: int) -> None:
    scene.boot()
    scene.agent.refuses, scene.host.busy = refusal, 2
    assert not await scene.follow()
    assert (scene.run.state, scene.run.code, scene.run.error) == ("failed", code, refusal.message)
    async with asyncio.timeout(5):
        await scene.host.tasks[-1]
    assert scene.host.given_up == [f"its program could not be started: {refusal.message}"]
    error = scene.program.error()
    assert error is not None
    assert refusal.message in error.message
    assert error.details["exit_code"] == code


async def test_no_program(scene: Scene) -> None:
    scene.host.change(container=IMAGE.model_copy(update={"entrypoint": (), "cmd": ()}))
    scene.boot()
    assert not await scene.follow()
    assert "no ENTRYPOINT and no CMD" in str(scene.run.error)


async def test_an_agent_that_goes_away_is_asked_again(scene: Scene) -> None:
    scene.boot()
    scene.agent.refuses = AgentUnavailable("gone")
    with pytest.raises(AgentUnavailable):
        await scene.follow()
    assert scene.run.state == "waits"
    scene.agent.refuses = None
    assert await scene.follow()


async def test_boots_without_a_program(scene: Scene) -> None:
    scene.program.leave_out()
    assert scene.program.at_boot() is None
    assert scene.program.at_boot() is not None  # the next boot starts it
    assert await scene.follow()
    assert scene.agent.started == []
    assert ContainerProgram(Host(None)).at_boot() is None
    systemd = IMAGE.model_copy(update={"entrypoint": ("/sbin/init",)})
    assert ContainerProgram(Host(systemd)).at_boot() is None
    assert ContainerProgram(Host(systemd, init="bough")).at_boot() is not None


async def test_a_fork_of_a_booted_snapshot_gets_its_program(scene: Scene) -> None:
    await scene.program.start(cast(AgentChannel, scene.agent))
    assert scene.run.state == "runs"
    await scene.program.start(cast(AgentChannel, scene.agent))
    assert len(scene.agent.started) == 1


@pytest.mark.parametrize("answer", [{"code": True}, {"code": 999, "signal": 5}, {"output": 7}, {"code": "0"}])
async def test_a_hostile_end(scene: Scene, answer: dict[str, Any]) -> None:
    scene.boot()
    scene.agent.end.set_result(answer)
    assert not await scene.follow()
    assert (scene.run.code, scene.run.signal, scene.run.output) == (None, None, "")
    assert not scene.run.has_failed
