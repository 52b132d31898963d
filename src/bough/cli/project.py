"""The commands of projects: up, down, ps, config, top."""

from __future__ import annotations

import contextlib
import sys
import time
from typing import TYPE_CHECKING, Any

import click

from bough.cli.output import ago, clean, show_json, show_table
from bough.cli.project_choice import existing, project_options, with_file
from bough.cli.project_progress import machines_progress
from bough.cli.service import DURATION, TIMEOUT_HELP, connect, json_option
from bough.errors import NotFound
from bough.units import format_size

if TYPE_CHECKING:
    from bough.client.machine import Machine
    from bough.client.project import Project

_WORDS = {
    "create": "create",
    "recreate": "delete, and create anew",
    "change": "change",
    "restart": "stop, change and start",
    "start": "start",
    "leave": "leave: the file does not name it any more (--remove-orphans deletes it)",
    "delete": "delete: the file does not name it any more",
}
_TOP_S = 2.0
#: How often a command that keeps an ephemeral project looks whether the project is still there.
_STAY_S = 2.0


@click.command()
@click.argument("machines", nargs=-1)
@project_options
@click.option(
    "--profile", "profiles", multiple=True, metavar="NAME", help="Also start this profile's machines."
)
@click.option("--dry-run", is_flag=True, help="Print what would be done, and do nothing.")
@click.option(
    "--recreate",
    is_flag=True,
    help="Delete machines, with their disks, that cannot change otherwise, and create them anew.",
)
@click.option("--remove-orphans", is_flag=True, help="Delete machines that the file does not name any more.")
@click.option(
    "--ephemeral", is_flag=True, help="Stay until Ctrl-C; then delete the project, which must be new."
)
@click.option("--cold", is_flag=True, help="Boot new machines instead of forking booted snapshots.")
@click.option("--force", is_flag=True, help="Allow more memory, disk or vCPUs than the host has.")
@click.option("--timeout", type=DURATION, help=TIMEOUT_HELP)
@json_option
def up(
    machines: tuple[str, ...],
    file: str | None,
    project: str | None,
    profiles: tuple[str, ...],
    dry_run: bool,
    recreate: bool,
    remove_orphans: bool,
    ephemeral: bool,
    cold: bool,
    force: bool,
    timeout: float | None,
    as_json: bool,
) -> None:
    """Bring up the project of bough.toml, and wait until its machines are healthy.

    MACHINES start with all machines that they depend on. Default: all without a profile. A repeated `up`
    changes only what differs from the file. An ephemeral project is also deleted when this command is killed.
    """
    chosen = with_file(file, project)
    how: dict[str, Any] = {
        "profiles": profiles,
        "recreate": recreate,
        "remove_orphans": remove_orphans,
    }
    plan = chosen.plan(machines, **how)
    if dry_run:
        show_json(plan.raw) if as_json else _print_steps(plan.steps, to_stderr=False)
        return
    _print_steps(plan.steps, to_stderr=True)
    with machines_progress() as report:
        done = chosen.up(
            machines, **how, ephemeral=ephemeral, cold=cold, force=force, timeout=timeout, progress=report
        )
    show_json(done.raw) if as_json else None
    if ephemeral:
        sys.stdout.flush()
        _stay(chosen)


def _stay(project: Project) -> None:
    """Keep an ephemeral project until Ctrl-C or the deletion of the project."""
    click.echo(f"{project.name} is up until Ctrl-C", err=True)
    with project, contextlib.suppress(KeyboardInterrupt, NotFound):
        while True:
            time.sleep(_STAY_S)
            project.info()


def _print_steps(steps: list[dict[str, Any]], *, to_stderr: bool) -> None:
    told = [step for step in steps if step["action"] != "keep"]
    for step in told:
        settings = f" ({', '.join(step['settings'])})" if step["settings"] else ""
        subject = step["name"] if step["noun"] == "machine" else f"network {step['name']}"
        click.echo(f"{subject}: {_WORDS[step['action']]}{settings}", err=to_stderr)
    if not told:
        click.echo("nothing to do: the machines run as the file says", err=to_stderr)


@click.command()
@project_options
@click.option("--volumes", is_flag=True, help="Delete machines, disks, networks and the project itself.")
@click.option("--deadline", type=DURATION, help="Cut the power of a machine after this time.")
@click.option("--force", is_flag=True, help="Cut the power at once.")
def down(file: str | None, project: str | None, volumes: bool, deadline: float | None, force: bool) -> None:
    """Stop the machines of a project, each after the machines that depend on it. Disks and networks stay."""
    with machines_progress() as report:
        existing(file, project).down(volumes=volumes, force=force, deadline=deadline, progress=report)


@click.command()
@project_options
@click.option("--all", "show_all", is_flag=True, help="List all projects of this home instead.")
@json_option
def ps(file: str | None, project: str | None, show_all: bool, as_json: bool) -> None:
    """List the machines of a project: state, health, addresses, ports."""
    if show_all:
        _list_projects(as_json)
        return
    found = existing(file, project).info(look=True)
    if as_json:
        show_json(found.raw)
        return
    head = ["MACHINE", "STATE", "HEALTH", "UP", "ADDRESSES", "PORTS"]
    show_table([_row(machine) for machine in found.machines], head)
    for machine in found.machines:
        if machine.get("health_error"):
            click.echo(f"{machine['role']}: {clean(machine['health_error'])}", err=True)


def _row(machine: dict[str, Any]) -> list[str]:
    addresses = [nic["ipv4"] for nic in machine["nics"] if nic["ipv4"]]
    ports = [f"{port['host']}:{port['host_port']}->{port['guest_port']}" for port in machine["ports"]]
    return [
        machine["role"],
        machine["state"],
        machine.get("health") or "-",
        ago(machine["started"]),
        " ".join(addresses) or "-",
        " ".join(ports) or "-",
    ]


def _list_projects(as_json: bool) -> None:
    found = connect().list_projects()
    if as_json:
        show_json([one.raw for one in found])
        return
    rows = [[one.name, one.state, str(len(one.machines)), one.loopback, one.file or "-"] for one in found]
    show_table(rows, ["PROJECT", "STATE", "MACHINES", "ADDRESS", "FILE"])


@click.command()
@project_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of TOML.")
def config(file: str | None, project: str | None, as_json: bool) -> None:
    """Check the project's file, and print it with variables and shared parts filled in."""
    from bough.spec.project.parse import parse_project
    from bough.spec.project.render import render_config

    chosen = with_file(file, project)
    spec = chosen.located(lambda: parse_project(chosen.config(), name=chosen.name))
    click.echo(render_config(spec, "json" if as_json else "toml"), nl=False)


@click.command()
@project_options
@click.option("--once", is_flag=True, help="Print the figures once.")
@json_option
def top(file: str | None, project: str | None, once: bool, as_json: bool) -> None:
    """Show processor time, memory and load of a project's machines, as the guests count them."""
    chosen = existing(file, project)
    if as_json:
        show_json(_loads(chosen.machines))
    elif once or not sys.stdout.isatty():
        _print_loads(*_two_samples(chosen))
    else:
        _show_loads(chosen)


def _loads(machines: dict[str, Machine]) -> dict[str, dict[str, Any] | None]:
    """Return role -> the guest's figures; None for a machine whose agent does not answer."""
    from concurrent.futures import ThreadPoolExecutor

    from bough.errors import BoughError

    def load(machine: Machine) -> dict[str, Any] | None:
        try:
            return machine.load()
        except BoughError:
            return None

    with ThreadPoolExecutor(max_workers=8) as pool:
        return dict(zip(machines, pool.map(load, machines.values()), strict=True))


_Sample = tuple[float, dict[str, dict[str, Any] | None]]


def _sample(project: Project) -> _Sample:
    return time.monotonic(), _loads(project.machines)


def _two_samples(project: Project) -> tuple[_Sample, _Sample]:
    before = _sample(project)
    time.sleep(1)
    return before, _sample(project)


def _load_rows(before: _Sample, after: _Sample) -> list[list[str]]:
    rows = []
    for role, load in after[1].items():
        earlier = before[1].get(role)
        if load is None:
            rows.append([role, "-", "-", "-", "-"])
            continue
        memory = load["memory_total_bytes"] - load["memory_available_bytes"]
        rows.append(
            [
                role,
                "-" if earlier is None else f"{_busy(earlier, load) / (after[0] - before[0]):.0%}",
                f"{format_size(memory)} of {format_size(load['memory_total_bytes'])}",
                f"{load['load_1']:.2f}",
                str(load["tasks"]),
            ]
        )
    return rows


def _busy(before: dict[str, Any], after: dict[str, Any]) -> float:
    """Return the seconds of processor time that the guest used."""
    return max(0.0, float(after["cpu_busy_s"]) - float(before["cpu_busy_s"]))


_HEAD = ["MACHINE", "CPU", "MEMORY", "LOAD", "TASKS"]


def _print_loads(before: _Sample, after: _Sample) -> None:
    show_table(_load_rows(before, after), _HEAD)


def _show_loads(project: Project) -> None:
    from rich.live import Live
    from rich.table import Table

    def table(before: _Sample, after: _Sample) -> Table:
        made = Table(*_HEAD, box=None, pad_edge=False)
        for row in _load_rows(before, after):
            made.add_row(*row)
        return made

    before = _sample(project)
    with Live(auto_refresh=False, screen=True) as live:
        try:
            while True:
                after = _sample(project)
                live.update(table(before, after), refresh=True)
                before = after
                time.sleep(_TOP_S)
        except KeyboardInterrupt:
            pass  # the usual end
