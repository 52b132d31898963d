"""The order in which the machines of a project start, and what a failure stops."""

from __future__ import annotations

import asyncio
from typing import Any

from bough.errors import MachineFailed
from bough.hypervisor.projects.startup import Startup
from bough.spec.project.parse import parse_project


class Starts:
    """Machines that start when the test says so.

    Attributes:
        begun: roles in the order in which their start began.
    """

    def __init__(self, machines: dict[str, Any]) -> None:
        self.spec = parse_project({"name": "shop", "machines": machines})
        self.begun: list[str] = []
        self.up: dict[str, asyncio.Event] = {role: asyncio.Event() for role in self.spec.machines}
        self.healthy: dict[str, asyncio.Event] = {role: asyncio.Event() for role in self.spec.machines}
        self.completed: dict[str, asyncio.Event] = {role: asyncio.Event() for role in self.spec.machines}
        self.failing: set[str] = set()

    def startup(self, *roles: str) -> Startup:
        return Startup(
            self.spec,
            roles or tuple(self.spec.machines),
            bring_up=self._bring_up,
            wait_healthy=self._wait_healthy,
            wait_completed=self._wait_completed,
        )

    async def _bring_up(self, role: str) -> None:
        self.begun.append(role)
        await self.up[role].wait()
        if role in self.failing:
            raise MachineFailed(f"machine 'shop-{role}' failed")

    async def _wait_healthy(self, role: str) -> None:
        if self.spec.machines[role].healthcheck is not None:
            await self.healthy[role].wait()

    async def _wait_completed(self, role: str) -> None:
        await self.completed[role].wait()


def machine(**settings: Any) -> dict[str, Any]:
    return {"image": "debian:12", **settings}


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_a_machine_starts_as_soon_as_its_dependencies_hold() -> None:
    starts = Starts(
        {
            "db": machine(healthcheck={"port": 5432}),
            "slow": machine(),
            "app": machine(depends_on={"db": "healthy"}),
            "seed": machine(depends_on={"db": "started"}),
            "web": machine(depends_on={"seed": "completed"}),
        }
    )
    startup = starts.startup()
    running = asyncio.create_task(startup.run())
    await settle()
    assert starts.begun == ["db", "slow"]
    starts.up["db"].set()
    await settle()
    assert starts.begun == ["db", "slow", "seed"]  # `slow` still boots, and nobody waits for it
    starts.healthy["db"].set()
    starts.up["seed"].set()
    await settle()
    assert starts.begun == ["db", "slow", "seed", "app"]
    assert startup.unfinished() == ["slow", "app", "web"]
    starts.completed["seed"].set()
    await settle()
    assert starts.begun[-1] == "web"
    for role in ("slow", "app", "web"):
        starts.up[role].set()
    await running
    assert (startup.failures, startup.blocked, startup.unfinished()) == ({}, {}, [])


async def test_a_failure_stops_only_the_machines_that_wait_for_it() -> None:
    starts = Starts(
        {
            "db": machine(),
            "app": machine(depends_on=["db"]),
            "web": machine(depends_on=["app"]),
            "other": machine(),
        }
    )
    starts.failing.add("db")
    for event in starts.up.values():
        event.set()
    startup = starts.startup()
    await startup.run()
    assert set(starts.begun) == {"db", "other"}
    assert list(startup.failures) == ["db"]
    assert startup.blocked == {"app": "db", "web": "app"}


async def test_a_dependency_that_is_not_chosen_does_not_count() -> None:
    starts = Starts({"db": machine(), "app": machine(depends_on=["db"])})
    starts.up["app"].set()
    await starts.startup("app").run()
    assert starts.begun == ["app"]
