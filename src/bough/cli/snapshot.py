"""The commands snapshot, fork and restore."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from bough.cli.machine_choice import machine_here, machine_named, machine_options
from bough.cli.output import progress, show_error, show_json, show_table
from bough.cli.project_choice import chosen_project
from bough.cli.project_instead import project_instead, project_snapshot_instead
from bough.cli.service import DURATION, NAME, TIMEOUT_HELP, connect, json_option
from bough.errors import NotFound
from bough.units import format_size

if TYPE_CHECKING:
    from bough.client.hypervisor import Hypervisor
    from bough.contract.answers import MachineInfo, ProjectSnapshotInfo, SnapshotInfo
    from bough.contract.snapshots import Identity

_now = click.option("--now", is_flag=True, help="Do not wait until the guest has booted.")


@click.group()
def snapshot() -> None:
    """Take, list and delete snapshots of machines and projects."""


@snapshot.command("create")
@machine_options
@click.argument("name", type=NAME)
@click.option("--name", "label", metavar="LABEL", help="Label of the snapshot.")
@click.option("-m", "--message", default="", help="Description of the snapshot.")
@click.option("--disks-only", is_flag=True, help="Omit the memory of a running machine.")
@_now
@json_option
def create_snapshot(
    name: str, label: str | None, message: str, disks_only: bool, now: bool, as_json: bool
) -> None:
    """Take a snapshot of a machine, or of all machines of a project at one moment.

    Running machines are paused for some milliseconds and run on.
    """
    given: dict[str, Any] = {"message": message, "memory": not disks_only, "now": now}
    try:
        with progress() as report:
            taken = machine_named(name).snapshot(label, progress=report, **given).info()
    except NotFound as error:
        project = project_instead(name, error)
        with progress() as report:
            parts = project.snapshot(label, progress=report, **given).info()
        _show_project_snapshot(parts, as_json=as_json)
        return
    if as_json:
        show_json(taken.raw)
        return
    print(taken.label or taken.id)
    if taken.consistency == "crash":
        click.echo(
            "note: the guest's file systems were not quiesced: the disks are as after a power loss", err=True
        )
    if taken.pause_ms is not None:
        click.echo(f"{name} was paused for {taken.pause_ms:.0f} ms", err=True)


def _show_project_snapshot(taken: ProjectSnapshotInfo, *, as_json: bool) -> None:
    if as_json:
        show_json(taken.raw)
        return
    print(taken.label or taken.id)
    if taken.pause_ms is not None:
        click.echo(f"each machine was paused for at most {taken.pause_ms:.0f} ms", err=True)


@snapshot.command("list")
@machine_options
@click.argument("name", type=NAME, required=False)
@json_option
def list_snapshots(name: str | None, as_json: bool) -> None:
    """List all snapshots, the snapshots of machine NAME, or with --project the snapshots of a project."""
    found = _snapshots(connect(), name)
    projects = _project_snapshots(connect(), name)
    if as_json:
        show_json([one.raw for one in [*found, *projects]])
        return
    rows = [
        [
            one.id,
            one.label or "",
            one.machine_name,
            one.created[:19].replace("T", " "),
            one.consistency,
            format_size(one.disk_bytes),
            one.message.partition("\n")[0][:40],
        ]
        for one in found
    ]
    rows += [
        [
            one.id,
            one.label or "",
            f"{one.project_name} ({len(one.machines)} machines)",
            one.created[:19].replace("T", " "),
            "memory" if one.memory else "disks",
            format_size(one.disk_bytes),
            one.message.partition("\n")[0][:40],
        ]
        for one in projects
    ]
    show_table(rows, ["ID", "LABEL", "MACHINE", "CREATED", "STATE", "SIZE", "MESSAGE"])


@snapshot.command("tree")
@machine_options
@click.argument("name", type=NAME, required=False)
def show_tree(name: str | None) -> None:
    """Show snapshots as a tree, with the machines that continue from each."""
    hypervisor = connect()
    found = _snapshots(hypervisor, name)
    known = {one.id for one in found}
    children: dict[str | None, list[SnapshotInfo]] = {}
    for one in found:
        children.setdefault(one.parent if one.parent in known else None, []).append(one)
    _print_tree(None, children, hypervisor.list_machines(), "")


def _print_tree(
    parent: str | None,
    children: dict[str | None, list[SnapshotInfo]],
    machines: list[MachineInfo],
    indent: str,
) -> None:
    below: list[tuple[str, str | None]] = [
        (f"{one.label or one.id}  ({one.machine_name}, {one.created[:16].replace('T', ' ')})", one.id)
        for one in children.get(parent, [])
    ]
    if parent is not None:
        below += [(f"* {m.name}  {m.state}", None) for m in machines if m.snapshot == parent]
    for number, (text, snapshot_id) in enumerate(below):
        last = number == len(below) - 1
        print(f"{indent}{'└─ ' if last else '├─ '}{text}")
        if snapshot_id is not None:
            _print_tree(snapshot_id, children, machines, indent + ("   " if last else "│  "))


def _snapshots(hypervisor: Hypervisor, name: str | None) -> list[SnapshotInfo]:
    found, project = hypervisor.list_snapshots(), chosen_project()
    if name is None and project is None:
        return found
    machines = [] if project is None else list(project.machines.values())
    if name is not None:
        machines = [hypervisor.machine(machine_here(name))]
    ids = {machine.id for machine in machines}
    return [one for one in found if one.machine in ids]


def _project_snapshots(hypervisor: Hypervisor, name: str | None) -> list[ProjectSnapshotInfo]:
    if name is not None:
        return []
    found, project = hypervisor.list_project_snapshots(), chosen_project()
    owner = None if project is None else project.info().id
    return [one for one in found if owner in (None, one.project)]


@snapshot.command("info")
@click.argument("reference")
def snapshot_info(reference: str) -> None:
    """Show a snapshot's manifest as JSON."""
    try:
        show_json(connect().snapshot_at(reference).info().raw)
    except NotFound as error:
        show_json(project_snapshot_instead(reference, error).info().raw)


@snapshot.command("verify")
@click.argument("references", nargs=-1, required=True)
def verify_snapshot(references: tuple[str, ...]) -> None:
    """Read whole snapshots and compare their checksums."""
    hypervisor = connect()
    with progress() as report:
        for reference in references:
            hypervisor.snapshot_at(reference).verify(progress=report)


@snapshot.command("delete")
@click.argument("references", nargs=-1, required=True)
def delete_snapshot(references: tuple[str, ...]) -> None:
    """Delete snapshots. Machines and other snapshots keep the disks that they need."""
    hypervisor = connect()
    for reference in references:
        try:
            hypervisor.snapshot_at(reference).delete()
        except NotFound as error:
            project_snapshot_instead(reference, error).delete()


@click.command()
@machine_options
@click.argument("source")
@click.argument("names", nargs=-1)
@click.option(
    "--count", type=click.IntRange(1, 1000), help="Number of forks; with one name: NAME-1, NAME-2, ..."
)
@click.option(
    "--identity",
    type=click.Choice(["new", "keep"]),
    default="new",
    help="new: each fork gets a new identity; keep: the identity of its parent.",
)
@click.option("--cold", is_flag=True, help="Fork the disks only; the machines are stopped.")
@_now
@click.option("--timeout", type=DURATION, help=TIMEOUT_HELP)
@json_option
def fork(
    source: str,
    names: tuple[str, ...],
    count: int | None,
    identity: Identity,
    cold: bool,
    now: bool,
    timeout: float | None,
    as_json: bool,
) -> int:
    """Create machines that continue from SOURCE: a machine, running or stopped, or a snapshot.

    A SOURCE that is both the name of a machine and the label of a snapshot is refused: give an id.

    If SOURCE is a project, or a snapshot of a project, NAMES are new projects: all machines, on networks of
    their own, with the same addresses, names and keys. Connections between the machines go on.
    """
    try:
        with progress() as report:
            made = connect().fork_each(
                machine_here(source),
                names=names,
                count=count,
                identity=identity,
                cold=cold,
                now=now,
                timeout=timeout,
                progress=report,
            )
    except NotFound as error:
        return _fork_project(source, error, names, count, now=now, timeout=timeout, as_json=as_json)
    if as_json:
        show_json([one.raw for one in made])
    for one in made:
        if one.error is not None:
            show_error(one.error)
        elif one.machine is not None and not as_json:
            print(one.machine.name)
    return 1 if any(one.error for one in made) else 0


def _fork_project(
    source: str,
    error: NotFound,
    names: tuple[str, ...],
    count: int | None,
    *,
    now: bool,
    timeout: float | None,
    as_json: bool,
) -> int:
    from bough.client.project import fork_each

    hypervisor = connect()
    if source not in {project.name for project in hypervisor.projects()}:
        source = project_snapshot_instead(source, error).id
    with progress() as report:
        made = fork_each(
            hypervisor.api, source, names=names, count=count, now=now, timeout=timeout, progress=report
        )
    if as_json:
        show_json([one.raw for one in made])
    for one in made:
        if one.error is not None:
            show_error(one.error)
        elif one.project is not None and not as_json:
            print(one.project.name)
    return 1 if any(one.error for one in made) else 0


@click.command()
@machine_options
@click.argument("name", type=NAME)
@click.argument("snapshot")
@click.option("--keep", is_flag=True, help="Take a snapshot of the present state first.")
def restore(name: str, snapshot: str, keep: bool) -> None:
    """Rewind a machine, or all machines of a project, to a snapshot.

    The present disks and memory are lost unless --keep.
    """
    try:
        with progress() as report:
            machine_named(name).restore(snapshot, keep=keep, progress=report)
    except NotFound as error:
        project = project_instead(name, error)
        with progress() as report:
            project.restore(snapshot, keep=keep, progress=report)
