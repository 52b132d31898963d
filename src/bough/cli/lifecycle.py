"""The commands that change a machine's state: create, start, stop and others."""

from __future__ import annotations

from typing import Any

import click

from bough.cli.output import progress, show_json
from bough.cli.service import DURATION, IMAGE, NAME, TIMEOUT_HELP, connect, json_option, machine_path
from bough.cli.spec import spec_of, spec_options

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


@click.command()
@click.argument("image", type=IMAGE, required=False)
@click.option("--name", help="Name of the machine.")
@click.option("--start", is_flag=True, help="Start the machine, too.")
@spec_options
@json_option
def create(
    image: str | None, name: str | None, start: bool, force: bool, as_json: bool, **given: Any
) -> None:
    """Create a machine from IMAGE (debian:12), stopped. An image that is missing is built or pulled first.

    The public keys in ~/.ssh may log in as root, unless --ssh-key or the spec names keys. Every flag has a
    setting in a TOML spec.
    """
    data = spec_of(image, given)
    if name is None and isinstance(data.get("name"), str):
        name = data.pop("name")
    service = connect()
    with progress() as report:
        body = {"spec": data, "name": name, "force": force}
        machine = service.long_call("POST", "/machines", body, progress=report)
        if start:
            machine = _start(service, machine["name"], None, report)
    show_json(machine) if as_json else print(machine["name"])


@click.command()
@click.argument("name", type=NAME)
@click.option("--no-wait", is_flag=True, help="Do not wait until the guest answers.")
@_until
@click.option("--timeout", type=DURATION, help=TIMEOUT_HELP)
@click.option("--cold", is_flag=True, help="Boot a suspended machine; its memory is lost.")
def start(name: str, no_wait: bool, until: str, timeout: float | None, cold: bool) -> None:
    """Start a machine and wait until the guest answers. A suspended machine resumes where it was."""
    with progress() as report:
        started = _start(connect(), name, timeout, report, wait=not no_wait, until=until, cold=cold)
    _say_already(started, "is running")


def _start(service: Any, name: str, timeout: float | None, report: Any, **options: Any) -> Any:
    body = {"timeout_s": timeout, **options}
    return service.long_call("POST", machine_path(name, "start"), body, progress=report)


def _say_already(answer: dict[str, Any], how: str) -> None:
    """Say on stderr that the machine had that state already. The exit status stays 0, for scripts."""
    if answer.get("already"):
        click.echo(f"{answer['name']} {how} already", err=True)


@click.command()
@click.argument("names", type=NAME, nargs=-1, required=True)
@_deadline
@click.option("--force", is_flag=True, help="Cut the power at once; a suspended machine loses its memory.")
def stop(names: tuple[str, ...], deadline: float | None, force: bool) -> None:
    """Shut a machine down; cut its power if it is still on after a deadline."""
    service = connect()
    with progress() as report:
        for name in names:
            body = {"deadline_s": deadline, "force": force}
            done = service.long_call("POST", machine_path(name, "stop"), body, progress=report)
            if done.get("how") == "already":
                how = "has failed and does not run" if done["state"] == "failed" else "is stopped already"
                click.echo(f"{name} {how}", err=True)
            if done.get("how") == "power" and not force:
                kind = (done.get("was") or {}).get("kind")
                why = f"had {kind}" if kind in ("halted", "panicked") else ""
                within = "" if deadline is None else f" within {deadline:.0f} s"
                why = why or f"did not power off{within}"
                click.echo(f"{name} {why}: bough cut its power", err=True)


@click.command()
@click.argument("name", type=NAME)
@_deadline
@_until
@click.option("--timeout", type=DURATION, help=TIMEOUT_HELP)
def restart(name: str, deadline: float | None, until: str, timeout: float | None) -> None:
    """Stop a machine and start it again."""
    with progress() as report:
        body = {"deadline_s": deadline, "until": until, "timeout_s": timeout}
        connect().long_call("POST", machine_path(name, "restart"), body, progress=report)


@click.command()
@click.argument("name", type=NAME)
def pause(name: str) -> None:
    """Pause a machine's vCPUs; its memory stays in RAM."""
    _say_already(connect().post(machine_path(name, "pause")), "is paused")


@click.command()
@click.argument("names", type=NAME, nargs=-1, required=True)
def suspend(names: tuple[str, ...]) -> None:
    """Write a machine's memory to disk and end its process.

    `bough resume` continues the machine where it was, also after a reboot of the host.
    """
    service = connect()
    with progress() as report:
        for name in names:
            path = machine_path(name, "suspend")
            done = service.long_call("POST", path, {}, timeout=None, progress=report)
            _say_already(done, "is suspended")


@click.command()
@click.argument("name", type=NAME)
@click.option("--no-wait", is_flag=True, help="Do not wait until the guest answers.")
@click.option("--timeout", type=DURATION, help=TIMEOUT_HELP)
def resume(name: str, no_wait: bool, timeout: float | None) -> None:
    """Resume a paused or suspended machine, or wake a sleeping guest."""
    body = {"wait": not no_wait, "timeout_s": timeout}
    with progress() as report:
        path = machine_path(name, "resume")
        done = connect().long_call("POST", path, body, timeout=None, progress=report)
    _say_already(done, "is running")


@click.command()
@click.argument("name", type=NAME)
@click.argument("new_name")
def rename(name: str, new_name: str) -> None:
    """Rename a machine."""
    connect().call("PATCH", machine_path(name), {"name": new_name})


@click.command()
@click.argument("names", type=NAME, nargs=-1, required=True)
@click.option("--force", is_flag=True, help="Also delete running machines; their power is cut.")
def delete(names: tuple[str, ...], force: bool) -> None:
    """Delete machines and their disks."""
    service = connect()
    for name in names:
        service.call("DELETE", machine_path(name, force=force), timeout=120)
