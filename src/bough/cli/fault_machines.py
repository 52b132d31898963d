"""The commands of faults of single machines."""

from __future__ import annotations

from typing import Any, Literal

import click

from bough.cli.fault_options import (
    MOMENT,
    PERCENT,
    SIGNED_DURATION,
    SIZE,
    for_option,
    seed_option,
    show_fault,
)
from bough.cli.machine_choice import machine_here, machine_named, machine_options, network_here
from bough.cli.service import NAME, connect, json_option

_disk = click.option("--disk", type=int, default=0, help="Number of the disk; 0 is the root disk.")


@click.command("unplug")
@machine_options
@click.argument("machine", type=NAME)
@click.option(
    "--network", metavar="NETWORK", help="The card's network, or uplink. Default: the only network."
)
@for_option
@json_option
def unplug(machine: str, network: str | None, for_s: float | None, as_json: bool) -> None:
    """Pull the cable of a network card. The guest sees that the link is down, unlike with lost frames."""
    from bough.contract.faults import PullCable

    card = network if network in (None, "uplink") else network_here(network)
    request = PullCable(machine=machine_here(machine), network=card, for_s=for_s)
    show_fault(connect().api.send(request), as_json)


@click.command("pause")
@machine_options
@click.argument("machine", type=NAME)
@for_option
@json_option
def pause(machine: str, for_s: float | None, as_json: bool) -> None:
    """Pause a machine's vCPUs until the fault is healed."""
    from bough.contract.faults import AddPause

    request = AddPause(machine=machine_here(machine), for_s=for_s)
    show_fault(connect().api.send(request), as_json)


@click.command("disk")
@machine_options
@click.argument("machine", type=NAME)
@click.argument("operation", type=click.Choice(["read", "write", "flush"]))
@_disk
@click.option(
    "--error",
    default="EIO",
    help="ENOSPC at a write pauses the machine until the fault is healed. Default: EIO.",
)
@click.option("--once", is_flag=True, help="Only the next request fails.")
@click.option("--rate", type=PERCENT, help="Percentage of the blocks of 4 KiB that fail.")
@click.option(
    "--range", "area", type=SIZE, nargs=2, metavar="START END", help="Only these bytes, like 1GiB 2GiB."
)
@seed_option
@for_option
@json_option
def disk(
    machine: str, operation: Literal["read", "write", "flush"], area: tuple[int, int] | None, as_json: bool,
    **given: Any,
) -> None:  # fmt: skip
    """Fail reads, writes or flushes of a disk.

    For example, bough fault disk db write --rate 1% --for 30s
    """
    from bough.contract.faults import FailDisk

    start, end = area or (None, None)
    request = FailDisk(machine=machine_here(machine), operation=operation, start=start, end=end, **given)
    show_fault(connect().api.send(request), as_json)


@click.command("throttle")
@machine_options
@click.argument("machine", type=NAME)
@_disk
@click.option("--rate", "bytes_per_s", type=SIZE, default=0, help="Bytes per second, like 1MiB.")
@click.option("--iops", type=int, default=0, help="Requests per second.")
@for_option
@json_option
def throttle(machine: str, as_json: bool, **given: Any) -> None:
    """Slow a disk down, reads and writes together."""
    from bough.contract.faults import ThrottleDisk

    request = ThrottleDisk(machine=machine_here(machine), **given)
    show_fault(connect().api.send(request), as_json)


@click.command("full")
@machine_options
@click.argument("machine", type=NAME)
@click.argument("path", default="/")
@for_option
@json_option
def full(machine: str, path: str, for_s: float | None, as_json: bool) -> None:
    """Fill the file system of a directory in the guest. Default: the root file system."""
    from bough.contract.faults import AddPressure

    request = AddPressure(machine=machine_here(machine), full=path, for_s=for_s)
    show_fault(connect().api.send_long(request), as_json)


@click.command("cpu")
@machine_options
@click.argument("machine", type=NAME)
@click.option("--loops", type=int, default=0, help="Number of busy processes. Default: one for each vCPU.")
@for_option
@json_option
def cpu(machine: str, loops: int, for_s: float | None, as_json: bool) -> None:
    """Run busy processes in the guest."""
    from bough.contract.faults import AddPressure

    request = AddPressure(machine=machine_here(machine), loops=loops, for_s=for_s)
    show_fault(connect().api.send_long(request), as_json)


@click.command("memory")
@machine_options
@click.argument("machine", type=NAME)
@click.argument("size", type=SIZE)
@for_option
@json_option
def memory(machine: str, size: int, for_s: float | None, as_json: bool) -> None:
    """Use SIZE (256MiB) of the guest's memory. The guest's kernel may kill processes."""
    from bough.contract.faults import AddPressure

    request = AddPressure(machine=machine_here(machine), memory_bytes=size, for_s=for_s)
    show_fault(connect().api.send_long(request), as_json)


@click.command("clock")
@machine_options
@click.argument("machine", type=NAME)
@click.option("--jump", "jump_s", type=SIGNED_DURATION, default=0.0, help="Set ahead (2h) or back (-7d).")
@click.option("--set", "to", type=MOMENT, help="Set to this time, like 2030-01-01T12:00Z.")
@click.option(
    "--drift",
    "drift_ppm",
    type=float,
    default=0.0,
    help="Too fast by these parts per million; negative: slow.",
)
@for_option
@json_option
def clock(machine: str, as_json: bool, **given: Any) -> None:
    """Set the guest's clock wrong. Services of the guest that correct the clock are stopped."""
    from bough.contract.faults import SetClockWrong

    request = SetClockWrong(machine=machine_here(machine), **given)
    show_fault(connect().api.send_long(request), as_json)


@click.command("kill")
@machine_options
@click.argument("machine", type=NAME)
@click.argument("unit", required=False)
@click.option("--process", metavar="NAME", help="All processes of this name, instead of a unit.")
@click.option("--signal", default="KILL", help="KILL, STOP, CONT, TERM, ... Default: KILL.")
def kill(machine: str, unit: str | None, process: str | None, signal: str) -> None:
    """Send a signal to a systemd unit in the guest, or to processes by name."""
    from bough.contract.faults import KillInGuest

    request = KillInGuest(machine=machine_here(machine), unit=unit, process=process, signal=signal)
    connect().api.send_long(request)


@click.command("power-cut")
@machine_options
@click.argument("machine", type=NAME)
@click.option("--lose-unsynced", is_flag=True, help="Lose what the guest has not flushed; see power-arm.")
@click.option("--seed", type=int, help="Keep a part of the unsynced writes, chosen by this number.")
def power_cut(machine: str, lose_unsynced: bool, seed: int | None) -> None:
    """Cut the power. The machine is stopped.

    No write of the guest is lost, unless --lose-unsynced is given for an armed machine.
    """
    machine_named(machine).power_cut(lose_unsynced=lose_unsynced, seed=seed)


@click.command("power-arm")
@machine_options
@click.argument("machine", type=NAME)
@for_option
@json_option
def power_arm(machine: str, for_s: float | None, as_json: bool) -> None:
    """Log all writes of a machine, for a power cut that loses the unflushed ones."""
    from bough.contract.faults import ArmPowerCut

    request = ArmPowerCut(machine=machine_here(machine), for_s=for_s)
    show_fault(connect().api.send_long(request), as_json)


@click.command("crash")
@machine_options
@click.argument("machine", type=NAME)
def crash(machine: str) -> None:
    """Kill QEMU. The machine is failed, and its restart policy applies."""
    machine_named(machine).crash_qemu()


@click.command("reset")
@machine_options
@click.argument("machine", type=NAME)
def reset(machine: str) -> None:
    """Press the reset button: the guest boots."""
    machine_named(machine).reset()


@click.command("panic")
@machine_options
@click.argument("machine", type=NAME)
def panic(machine: str) -> None:
    """Panic the guest's Linux. The machine is failed shortly after."""
    machine_named(machine).panic()


COMMANDS = (
    unplug,
    pause,
    power_arm,
    power_cut,
    crash,
    reset,
    panic,
    kill,
    disk,
    throttle,
    full,
    clock,
    cpu,
    memory,
)
