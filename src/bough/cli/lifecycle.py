"""The commands that change a machine's state: create, start, stop and others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import click

from bough.cli.docker_options import show_exposed
from bough.cli.help_sections import SectionedCommand
from bough.cli.machine_choice import machine_here, machine_named, machine_options
from bough.cli.output import progress, show_json
from bough.cli.project_choice import existing, project_options
from bough.cli.project_instead import project_instead
from bough.cli.project_progress import machines_progress
from bough.cli.service import DURATION, IMAGE, NAME, TIMEOUT_HELP, connect, json_option
from bough.cli.spec import spec_of, spec_options
from bough.errors import NotFound

if TYPE_CHECKING:
    from bough.client.machine import Machine

Until = Literal["agent", "booted"]

_until = click.option(
    "--until",
    type=click.Choice(["agent", "booted"]),
    default="agent",
    help="agent: wait until the guest answers; booted: until its services and its network are up.",
)


_deadline = click.option(
    "--deadline",
    type=DURATION,
    help="Cut the power after this time. Default: after 60 s without progress of the guest, at most 3m.",
)


@click.command(cls=SectionedCommand)
@click.argument("image", type=IMAGE, required=False)
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.option("--name", help="Name of the machine.")
@click.option("--start", is_flag=True, help="Start the machine, too.")
@spec_options
@json_option
def create(
    image: str | None,
    command: tuple[str, ...],
    name: str | None,
    start: bool,
    force: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Create a machine from IMAGE (debian:12), stopped. A missing image is built or pulled first.

    The public keys in ~/.ssh may log in as root, unless --ssh-key or the spec names keys. Every flag has a
    setting in a TOML spec.

    For a container image (oci:nginx), COMMAND replaces CMD of its program, as for `docker create`. Words that
    begin with a dash need `--` before COMMAND.
    """
    spec = spec_of(image, given)
    data = dict(spec.data)
    if command:
        data["command"] = list(command)
    if name is None and isinstance(data.get("name"), str):
        name = data.pop("name")
    hypervisor = connect()
    with spec.located(), progress() as report:
        machine = hypervisor.create_from(data, name=name, force=force, progress=report)
        if start:
            machine.start(progress=report)
    if start:
        show_exposed(machine)
    show_json(machine.info().raw) if as_json else print(machine.name)


@click.command()
@machine_options
@click.argument("name", type=NAME)
@click.option("--no-wait", is_flag=True, help="Do not wait until the guest answers.")
@_until
@click.option("--timeout", type=DURATION, help=TIMEOUT_HELP)
@click.option("--cold", is_flag=True, help="Boot a suspended machine; its memory is lost.")
def start(name: str, no_wait: bool, until: Until, timeout: float | None, cold: bool) -> None:
    """Start a machine and wait until the guest answers. A suspended machine resumes where it was."""
    machine = machine_named(name)
    with progress() as report:
        already = machine.start(wait=not no_wait, until=until, cold=cold, timeout=timeout, progress=report)
    _say_already(already, machine, "is running")


def _say_already(already: bool, machine: Machine, how: str) -> None:
    """Say on stderr that the machine had the state already. The exit status stays 0, for scripts."""
    if already:
        click.echo(f"{machine.name} {how} already", err=True)


@click.command()
@machine_options
@click.argument("names", type=NAME, nargs=-1, required=True)
@_deadline
@click.option("--force", is_flag=True, help="Cut the power at once; a suspended machine loses its memory.")
def stop(names: tuple[str, ...], deadline: float | None, force: bool) -> None:
    """Shut a machine down; cut its power if it is still on after a deadline."""
    from bough.contract.answers import StoppedMachine
    from bough.contract.machines import StopMachine

    api = connect().api
    with progress() as report:
        for name in names:
            # Machine.stop returns less than the answer says: the state, and the condition before.
            request = StopMachine(reference=machine_here(name), deadline_s=deadline, force=force)
            done = StoppedMachine.from_dict(api.send_long(request, progress=report))
            if done.how == "already":
                how = "has failed and does not run" if done.state == "failed" else "is stopped already"
                click.echo(f"{name} {how}", err=True)
            if done.how == "power" and not force:
                click.echo(f"{name} {_why_cut(done.was, deadline)}: bough cut its power", err=True)


def _why_cut(was: dict[str, Any] | None, deadline: float | None) -> str:
    kind = (was or {}).get("kind")
    if kind in ("halted", "panicked"):
        return f"had {kind}"
    return "did not power off" + ("" if deadline is None else f" within {deadline:.0f} s")


@click.command()
@click.argument("names", type=NAME, nargs=-1)
@_deadline
@_until
@click.option("--timeout", type=DURATION, help=TIMEOUT_HELP)
@project_options
def restart(
    names: tuple[str, ...],
    deadline: float | None,
    until: Until,
    timeout: float | None,
    file: str | None,
    project: str | None,
) -> None:
    """Stop machines and start them again. Without NAMES: all machines of the project, in their order.

    Without NAMES, and with --file or --project, `restart` returns when the machines are healthy again.
    """
    if names and file is None and project is None:
        with progress() as report:
            for name in names:
                machine_named(name).restart(deadline=deadline, until=until, timeout=timeout, progress=report)
        return
    with machines_progress() as report:
        existing(file, project).restart(names, deadline=deadline, progress=report)


@click.command()
@machine_options
@click.argument("name", type=NAME)
def pause(name: str) -> None:
    """Pause a machine's vCPUs; its memory stays in RAM."""
    machine = machine_named(name)
    _say_already(machine.pause(), machine, "is paused")


@click.command()
@machine_options
@click.argument("names", type=NAME, nargs=-1, required=True)
def suspend(names: tuple[str, ...]) -> None:
    """Write the memory of a machine, or of all machines of a project, to disk and end the processes.

    `bough resume` continues the machines where they were, also after a reboot of the host.
    """
    hypervisor = connect()
    with progress() as report:
        for name in names:
            machine = hypervisor.machine_at(machine_here(name))
            try:
                _say_already(machine.suspend(progress=report), machine, "is suspended")
            except NotFound as error:
                project_instead(name, error).suspend(progress=report)


@click.command()
@machine_options
@click.argument("name", type=NAME)
@click.option("--no-wait", is_flag=True, help="Do not wait until the guest answers.")
@click.option("--timeout", type=DURATION, help=TIMEOUT_HELP)
def resume(name: str, no_wait: bool, timeout: float | None) -> None:
    """Resume a paused or suspended machine, or a project, or wake a sleeping guest."""
    machine = machine_named(name)
    with progress() as report:
        try:
            already = machine.resume(wait=not no_wait, timeout=timeout, progress=report)
        except NotFound as error:
            project_instead(name, error).resume(progress=report)
            return
    _say_already(already, machine, "is running")


@click.command()
@machine_options
@click.argument("name", type=NAME)
@click.argument("new_name")
def rename(name: str, new_name: str) -> None:
    """Rename a machine."""
    machine_named(name).rename(new_name)


@click.command()
@machine_options
@click.argument("names", type=NAME, nargs=-1, required=True)
@click.option("--force", is_flag=True, help="Also delete running machines; their power is cut.")
def delete(names: tuple[str, ...], force: bool) -> None:
    """Delete machines and their disks. Snapshots of the machines stay.

    A machine of a project is refused: use `bough down --volumes`, or `bough up --remove-orphans`.
    """
    hypervisor = connect()
    for name in names:
        hypervisor.machine_at(machine_here(name)).delete(force=force)
