"""The commands list, info, logs, wait and events."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import click

from bough.cli.machine_choice import machine_named, machine_options
from bough.cli.output import ago, clean, progress, show_json, show_table
from bough.cli.service import DURATION, NAME, TIMEOUT_HELP, connect, json_option
from bough.units import format_size

if TYPE_CHECKING:
    from bough.contract.answers import Port

Until = Literal["agent", "booted", "rebooted", "stopped", "first-boot"]


@click.command("list")
@json_option
def list_machines(as_json: bool) -> None:
    """List the machines.

    A note after the state, like `running (hung)`, names a problem. `bough info NAME` explains the problem.
    """
    machines = connect().list_machines()
    if as_json:
        show_json([m.raw for m in machines])
        return
    rows = [
        [
            m.name,
            _state(m.raw),
            m.image,
            str(m.vcpus),
            format_size(m.memory_bytes),
            format_size(m.disk_bytes),
            ago(m.started),
            " ".join(map(_port, m.ports)) or "-",
        ]
        for m in machines
    ]
    show_table(rows, ["NAME", "STATE", "IMAGE", "VCPUS", "MEMORY", "ON DISK", "UP", "PORTS"])


def _port(port: Port) -> str:
    """Return a forwarded port as `--port` takes it; a project has another address than 127.0.0.1."""
    host = "" if port.host == "127.0.0.1" else f"{port.host}:"
    return f"{host}{port.host_port}:{port.guest_port}"


def _nic(nic: dict[str, Any]) -> str:
    address = f", {nic['ipv4']}" if nic.get("ipv4") else ""
    return f"{nic['mac']} on {nic['network']}, {nic['model']}{address}"


def _state(machine: dict[str, Any]) -> str:
    """Return a machine's state, with notes about further trouble."""
    unreachable = bool(machine["unreachable"])
    runs = not unreachable and machine["state"] == "running"
    kind = str((machine.get("condition") or {}).get("kind", ""))
    notes = {
        "unreachable": unreachable,
        kind: runs and kind,
        "silent": runs and not kind and machine["agent"] == "silent",
        _exit_note(machine): machine["state"] == "stopped",
        "first boot failed": machine["first_boot"]["error"],
        "identity incomplete": machine.get("identity_error"),
    }
    told = ", ".join(note for note, is_so in notes.items() if note and is_so)
    return f"{machine['state']} ({told})" if told else str(machine["state"])


def _exit_note(machine: dict[str, Any]) -> str:
    """Return the exit status of a program that has ended, as `docker ps -a` shows it."""
    run = machine.get("program") or {}
    return f"exit status {run['code']}" if run.get("state") == "ended" and run.get("code") is not None else ""


@click.command()
@machine_options
@click.argument("name", type=NAME)
@click.option("--plan", is_flag=True, help="Show what a start would use: data and command line.")
@json_option
def info(name: str, plan: bool, as_json: bool) -> None:
    """Show a machine: settings, process, jail, and the cause of a failure."""
    found = machine_named(name)
    if plan:
        _show_plan(found.plan(), as_json)
        return
    machine = found.info(look=True).raw
    if as_json:
        show_json(machine)
        return
    for key, value in _rows(machine):
        print(f"{key + ':':13}{value}")
    for mount in machine.get("mounts") or []:
        mode, state = "rw" if mount["writable"] else "ro", clean(mount["error"] or mount["state"])
        print(f"{'mount:':13}{mount['source']} -> {mount['target']} ({mode}, {state})")
    _show_policy(machine)
    _show_jail(machine["jail"])
    _show_trouble(machine)


def _rows(machine: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the lines about the machine: label and value."""
    hardware = machine["hardware"]
    rows = [
        ("name", machine["name"]),
        ("id", machine["id"]),
        (
            "state",
            machine["state"] + (" (deleted when its client disconnects)" if machine["ephemeral"] else ""),
        ),
        ("agent", machine["agent"] + (", the guest is still booting" if _boots(machine) else "")),
        *([("seen", _seen(machine["seen"]))] if machine.get("seen") else []),
        *([("guest", clean(machine["condition"]["text"]))] if machine.get("condition") else []),
        ("image", f"{machine['image']}  {machine['image_digest'][:12]}"),
        *_program(machine),
        ("created", f"{ago(machine['created'])} ago"),
        ("up", ago(machine["started"])),
        ("hardware", f"{hardware['machine_type']}, {_cpu(hardware['cpu_model'])}, {hardware['firmware']}"),
        ("size", f"{machine['vcpus']} vCPUs, {format_size(machine['memory_bytes'])} memory"),
        ("on disk", f"{format_size(machine['disk_bytes'])}, backing files: {machine['layers']}"),
        ("limits", _limits(machine["spec"].get("limits") or {})),
        ("processor", hardware["arch"]),
        ("accelerator", _accelerator(machine["accelerator"])),
        *([("note", machine["accelerator_note"])] if machine.get("accelerator_note") else []),
        ("pid", str(machine["pid"] or "-")),
        (
            "ports",
            ", ".join(f"{p['host']}:{p['host_port']} -> {p['guest_port']}" for p in machine["ports"]) or "-",
        ),
    ]
    rows += [("nic", _nic(nic)) for nic in machine["nics"]]
    rows += _uplink(machine.get("uplink"))
    return rows


def _program(machine: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the lines about the container image and its program."""
    container, run = machine.get("container"), machine.get("program")
    rows = (
        [("container", clean(f"{container['reference']}  {container['digest'][:19]}"))] if container else []
    )
    if run:
        import shlex

        rows.append(("program", clean(f"{shlex.join(run['argv'])} {_how_it_runs(run)}".strip())))
    return rows


def _how_it_runs(run: dict[str, Any]) -> str:
    if run["state"] == "runs":
        return f"(pid {run['pid']})"
    if run["state"] == "failed":
        return f"(not started: {run['error']})"
    if run["state"] == "waits":
        return "(starts when the guest is set up)"
    how = f"signal {run['signal']}" if run["signal"] else f"exit status {run['code']}"
    return f"(ended: {how})" if run["signal"] or run["code"] is not None else "(ended: exit status unknown)"


def _cpu(model: str) -> str:
    """Return the name of a CPU model, without the features that QEMU switches on and off."""
    return model.partition(",")[0]


def _seen(seen: dict[str, Any]) -> str:
    """Render the signs of a boot that were seen of a guest without an agent."""
    return clean(f"{seen['says']}: {seen['line']}" if seen["line"] else seen["says"])


def _boots(machine: dict[str, Any]) -> bool:
    return machine["agent"] == "answering" and machine.get("booted") is False


def _accelerator(name: str | None) -> str:
    return "tcg (emulated)" if name == "tcg" else name or "-"


def _uplink(uplink: dict[str, Any] | None) -> list[tuple[str, str]]:
    if not uplink:
        return []
    detail = f" ({uplink['detail']})" if uplink["detail"] else ""
    through = f" through {uplink['network']}" if uplink.get("network") else ""
    return [
        (
            "uplink",
            f"{uplink['state']}{through}{detail}, DNS from {', '.join(map(clean, uplink['resolvers']))}",
        )
    ]


def _limits(limits: dict[str, Any]) -> str:
    """Render the limits of the spec, and the console's."""
    told = []
    for name, value in limits.items():
        if value is None:
            continue
        text = f"{value}%" if name == "cpu" else str(value) if name == "iops" else format_size(value)
        told.append(f"{name} {text}" + ("/s" if name in ("disk", "console") else ""))
    return ", ".join(told) or "-"


def _show_plan(plan: dict[str, Any], as_json: bool) -> None:
    if as_json:
        show_json(plan)
        return
    import shlex

    words = plan["argv"]
    lines = [shlex.quote(words[0])]
    for word in words[1:]:
        if word.startswith("-"):
            lines.append("  " + word)
        else:
            lines[-1] += " " + shlex.quote(word)
    print(" \\\n".join(lines))


def _show_jail(jail: dict[str, Any] | None) -> None:
    if not jail:
        return
    missing = [part for part in jail["parts"] if not part["had"]]
    print(f"{'jail:':13}{'complete' if not missing else 'without ' + ', '.join(p['name'] for p in missing)}")
    for part in missing:
        print(f"{'':13}{part['name']}: {part['detail']}")


def _show_policy(machine: dict[str, Any]) -> None:
    if machine["spec"].get("autostart"):
        print(f"{'autostart:':13}when the service starts")
    restarts = machine.get("restarts") or {}
    if machine["spec"].get("restart") == "on-failure":
        done = f", {restarts['count']} in a row" if restarts.get("count") else ""
        at = f", the next at {restarts['next'][11:19]} UTC" if restarts.get("next") else ""
        print(f"{'restart:':13}on failure{done}{at}")
    if restarts.get("cause") and not machine["failure"]:
        print(f"{'failed once:':13}{clean(restarts['cause'])}")


def _show_trouble(machine: dict[str, Any]) -> None:
    if machine["unreachable"]:
        print(f"{'unreachable:':13}{clean(machine['unreachable'])}")
    if machine["first_boot"]["error"]:
        for line in clean(machine["first_boot"]["error"]).split("\n"):
            print(f"{'first boot:':13}{line}")
    if machine.get("identity_error"):
        print(f"{'identity:':13}{clean(machine['identity_error'])}")
    failure = machine["failure"]
    if failure:
        print(f"{'failed:':13}{clean(failure['cause'])}")
        for key in ("qemu_stderr", "console"):
            lines = [line for line in clean(failure[key]).split("\n") if line.strip()]
            for line in lines[-10:]:
                print(f"  {'qemu' if key == 'qemu_stderr' else key}: {line}")


@click.command()
@machine_options
@click.argument("name", type=NAME)
@click.option(
    "--until",
    type=click.Choice(["agent", "booted", "rebooted", "stopped", "first-boot"]),
    default="agent",
    help="agent: the guest answers; first-boot: its first boot is set up; booted: services and network are "
    "up; rebooted: the same, after a later boot; stopped: the machine is off.",
)
@click.option("--boot-id", help="With --until rebooted: id of the previous boot, as in `info --json`.")
@click.option("--timeout", type=DURATION, help=f"{TIMEOUT_HELP} With --until stopped: 2m.")
def wait(name: str, until: Until, boot_id: str | None, timeout: float | None) -> None:
    """Wait until a machine answers, is up, has rebooted, or has stopped.

    A guest that is shutting down counts as down: `wait` waits for the next boot.
    """
    if boot_id and until != "rebooted":
        raise click.UsageError("--boot-id needs --until rebooted")
    with progress() as report:
        machine_named(name).wait(until, boot_id=boot_id, timeout=timeout, progress=report)


@click.command()
@click.option(
    "--since", help="Print also the events since this time, written as events show it; default: new events."
)
@json_option
def events(since: str | None, as_json: bool) -> None:
    """Print events of machines as they happen."""
    import json

    for event in connect().events(since):
        if as_json:
            print(json.dumps(event.raw), flush=True)
            continue
        words = (event.time[11:19], event.name, event.kind, clean(event.detail))
        print("  ".join(words).rstrip(), flush=True)
