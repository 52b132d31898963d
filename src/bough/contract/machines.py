"""Requests about machines as a whole: create, run, start, stop and the like."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from bough.contract.request import Request, Route

if TYPE_CHECKING:
    from bough.contract.answers import ChangedMachine, MachineInfo, StoppedMachine
    from bough.contract.checks import DEADLINE_S, LOG_BYTES, WAIT_S, Length


class ListMachines(Request):
    """List all machines, the oldest first."""

    route = Route("GET", "/machines")
    answer: ClassVar[list[MachineInfo]]


class CreateMachine(Request):
    """Create a machine from a spec. A missing image is built or pulled first.

    `force` allows more than the host has. `ephemeral`: the machine is deleted when no client holds it.
    """

    route = Route("POST", "/machines", "long")
    answer: ClassVar[MachineInfo]
    spec: dict[str, Any]
    name: str | None = None
    force: bool = False
    start: bool = False
    ephemeral: bool = False


class RunMachine(Request):
    """Create a machine, and wait until it answers. The machine forks a booted snapshot, unless `cold`.

    `program`: start the program of a container image.
    """

    route = Route("POST", "/machines/run", "long")
    answer: ClassVar[MachineInfo]
    spec: dict[str, Any]
    name: str | None = None
    force: bool = False
    ephemeral: bool = False
    cold: bool = False
    program: bool = True
    timeout_s: Annotated[float | None, WAIT_S] = None


class GetMachine(Request):
    """Return the description of a machine.

    With `look`, ask the agent first: "condition" is the reason if the agent does not answer.
    """

    route = Route("GET", "/machines/{reference}")
    answer: ClassVar[MachineInfo]
    reference: str
    look: bool = False


class RenameMachine(Request):
    """Give a machine another name."""

    route = Route("PATCH", "/machines/{reference}")
    answer: ClassVar[MachineInfo]
    reference: str
    name: str


class SetMachine(Request):
    """Change settings of a machine that is no project's: all of the given settings, or none.

    `settings` has values as in a spec. A setting whose `change` is "stopped" needs a stopped machine. `force`
    allows more than the host has.
    """

    route = Route("POST", "/machines/{reference}/settings", "long")
    answer: ClassVar[MachineInfo]
    reference: str
    settings: dict[str, Any]
    force: bool = False


class KeepMachine(Request):
    """Keep an ephemeral machine: the machine is not deleted when its client disconnects."""

    route = Route("POST", "/machines/{reference}/keep")
    answer: ClassVar[MachineInfo]
    reference: str


class DeleteMachine(Request):
    """Delete a machine.

    Without `wait`, an ephemeral machine is unlisted at once and deleted in the background.
    """

    route = Route("DELETE", "/machines/{reference}")
    reference: str
    force: bool = False
    wait: bool = True


class StartMachine(Request):
    """Start a machine, and wait until its guest is as `until` says, unless `wait` is false."""

    route = Route("POST", "/machines/{reference}/start", "long")
    answer: ClassVar[ChangedMachine]
    reference: str
    wait: bool = True
    until: Literal["agent", "booted"] = "agent"
    timeout_s: Annotated[float | None, WAIT_S] = None
    cold: bool = False


class StopMachine(Request):
    """Stop a machine.

    `how` in the answer: "guest": the guest powered off; "power": bough cut the power; "already": the
    machine did not run. `was`: the condition before.
    """

    route = Route("POST", "/machines/{reference}/stop", "long")
    answer: ClassVar[StoppedMachine]
    reference: str
    deadline_s: Annotated[float | None, DEADLINE_S] = None
    force: bool = False


class RestartMachine(Request):
    """Stop a machine and start it again."""

    route = Route("POST", "/machines/{reference}/restart", "long")
    answer: ClassVar[MachineInfo]
    reference: str
    deadline_s: Annotated[float | None, DEADLINE_S] = None
    wait: bool = True
    until: Literal["agent", "booted"] = "agent"
    timeout_s: Annotated[float | None, WAIT_S] = None


class PauseMachine(Request):
    """Pause a machine's vCPUs."""

    route = Route("POST", "/machines/{reference}/pause")
    answer: ClassVar[ChangedMachine]
    reference: str


class SuspendMachine(Request):
    """Write the machine's memory to disk, and end QEMU."""

    route = Route("POST", "/machines/{reference}/suspend", "long")
    answer: ClassVar[ChangedMachine]
    reference: str


class ResumeMachine(Request):
    """Continue a paused or suspended machine. With `wait`, wait until a suspended machine answers."""

    route = Route("POST", "/machines/{reference}/resume", "long", body_optional=True)
    answer: ClassVar[ChangedMachine]
    reference: str
    wait: bool = True
    timeout_s: Annotated[float | None, WAIT_S] = None


class GetPlan(Request):
    """Return the plan of the next start, as data and as a command line."""

    route = Route("GET", "/machines/{reference}/plan")
    reference: str


class GetLogs(Request):
    """Return the last `tail` bytes as the guest printed them, with escape sequences."""

    route = Route("GET", "/machines/{reference}/logs", "text")
    reference: str
    source: Literal["console", "qemu"] = "console"
    tail: Annotated[int, LOG_BYTES] = 64 * 1024


class WaitMachine(Request):
    """Wait until a machine is as `until` says.

    `boot_id`, for "rebooted": id of the boot before; default: the last id that the agent reported.
    """

    route = Route("POST", "/machines/{reference}/wait", "long")
    answer: ClassVar[MachineInfo]
    reference: str
    until: Literal["agent", "running", "stopped", "first-boot", "booted", "rebooted"] = "agent"
    boot_id: Annotated[str | None, Length(most=64)] = None
    timeout_s: Annotated[float | None, WAIT_S] = None


class PingMachine(Request):
    """Return the seconds until the agent's answer."""

    route = Route("POST", "/machines/{reference}/ping")
    reference: str


class GetLoad(Request):
    """Return memory and load as the guest measures them."""

    route = Route("GET", "/machines/{reference}/load")
    reference: str
