"""Start the machines of a project, each as soon as the conditions of its dependencies hold."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection

from bough.errors import BoughError, HostLacks
from bough.spec.project.model import Condition, ProjectSpec

_CONDITIONS: tuple[Condition, ...] = ("started", "healthy", "completed")
Wait = Callable[[str], Awaitable[None]]


class Startup:
    """The machines of one `up`. A failure stops only the machines that wait for the failed one.

    Attributes:
        failures: role -> why the machine is not up.
        blocked: role -> the machine that it waited for in vain.

    Args:
        bring_up: starts the machine of a role, and returns when the guest has answered.
        wait_healthy: waits until the health check has passed; called for each role.
        wait_completed: waits until the machine has powered off by itself.
    """

    def __init__(
        self,
        spec: ProjectSpec,
        roles: Collection[str],
        *,
        bring_up: Wait,
        wait_healthy: Wait,
        wait_completed: Wait,
    ) -> None:
        self.failures: dict[str, BoughError] = {}
        self.blocked: dict[str, str] = {}
        self._spec = spec
        self._roles = roles
        self._bring_up = bring_up
        self._wait_healthy = wait_healthy
        self._wait_completed = wait_completed
        self._gates = {(role, condition): _Gate() for role in roles for condition in _CONDITIONS}
        self._completing = completing_roles(spec)

    async def run(self) -> None:
        """Start all machines. Return when each is up, has failed, or can never start."""
        async with asyncio.TaskGroup() as group:
            for role in self._roles:
                group.create_task(self._run(role), name=f"bring up {role}")

    def unfinished(self) -> list[str]:
        """Return the roles that are not up yet, and have not failed."""
        return [role for role in self._roles if not self._gates[role, "healthy"].is_settled]

    async def _run(self, role: str) -> None:
        try:
            blocker = await self._wait_dependencies(role)
            if blocker is not None:
                self.blocked[role] = blocker
                return
            await self._start(role)
        except BoughError as error:
            self.failures[role] = error
        except OSError as error:  # EMFILE, EIO: other machines may succeed
            self.failures[role] = HostLacks(f"the host failed: {error}")
        finally:
            for condition in _CONDITIONS:
                self._gates[role, condition].settle(reached=False)

    async def _start(self, role: str) -> None:
        await self._bring_up(role)
        self._gates[role, "started"].settle(reached=True)
        await self._wait_healthy(role)
        self._gates[role, "healthy"].settle(reached=True)
        if role in self._completing:
            await self._wait_completed(role)
            self._gates[role, "completed"].settle(reached=True)

    async def _wait_dependencies(self, role: str) -> str | None:
        """Return the first dependency whose condition is never reached; None when all hold."""
        for other, condition in self._spec.machines[role].depends_on.items():
            gate = self._gates.get((other, condition))
            if gate is not None and not await gate.wait():
                return other
        return None


class _Gate:
    """A condition that is reached, or never will be."""

    def __init__(self) -> None:
        self._settled = asyncio.Event()
        self._reached = False

    @property
    def is_settled(self) -> bool:
        return self._settled.is_set()

    def settle(self, *, reached: bool) -> None:
        """Say how it ended. The first call counts."""
        if not self._settled.is_set():
            self._reached = reached
            self._settled.set()

    async def wait(self) -> bool:
        await self._settled.wait()
        return self._reached


def completing_roles(spec: ProjectSpec) -> set[str]:
    """Return the roles whose machines do one job and power off: others wait for that."""
    return {
        other
        for machine in spec.machines.values()
        for other, condition in machine.depends_on.items()
        if condition == "completed"
    }
