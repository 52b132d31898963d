"""Flags that describe a machine -> the dict of a spec; what it means is for the service to say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from bough.errors import InvalidInput

_FLAGS: list[tuple[str, dict[str, Any]]] = [
    ("--vcpus", {"type": int, "help": "Virtual processors."}),
    ("--memory", {"metavar": "SIZE", "help": "Memory, like 512MiB."}),
    ("--disk", {"metavar": "SIZE", "help": "Size of the first disk; the guest's file system grows."}),
    ("--arch", {"help": "Processor architecture; the host's by default."}),
    ("--cpu", {"help": "A CPU model of QEMU."}),
    ("--machine-type", {"help": "A versioned machine type of QEMU, like pc-q35-7.2."}),
    ("--firmware", {"metavar": "bios|uefi", "help": "What boots the disk."}),
    ("--kernel", {"metavar": "FILE", "help": "A kernel of this host instead of the disk's."}),
    ("--initrd", {"metavar": "FILE", "help": "With --kernel."}),
    ("--cmdline", {"metavar": "TEXT", "help": "With --kernel."}),
    ("--clock", {"metavar": "utc|local|OFFSET", "help": "What time it is there: -7d, +2h."}),
    ("--cdrom", {"metavar": "IMAGE|FILE", "help": "An ISO in the drive; a file is imported."}),
    ("--floppy", {"metavar": "IMAGE|FILE", "help": "A floppy in the drive; a file is imported."}),
    ("--boot", {"metavar": "disk|cdrom|floppy", "help": "What is tried first."}),
    ("--hostname", {"help": "The machine's name by default."}),
    ("--restart", {"metavar": "no|on-failure", "help": "Whether it is started again when it failed."}),
    ("--accelerator", {"metavar": "auto|kvm|tcg", "help": "How the processor is virtualized."}),
]
_LISTS: list[tuple[str, str, dict[str, Any]]] = [
    ("--extra-disk", "disks", {"metavar": "SIZE", "help": "An empty disk beside the first."}),
    ("--user", "users", {"metavar": "NAME", "help": "A user that is made at first boot, may sudo."}),
    ("--ssh-key", "ssh_keys", {"metavar": "FILE|KEY", "help": "May log in as root by ssh."}),
    ("--env", "environment", {"metavar": "NAME=VALUE", "help": "For every command and login."}),
    ("--copy", "files", {"metavar": "FILE:PATH", "help": "Written there at first boot."}),
    ("--command", "commands", {"metavar": "SHELL", "help": "Run at first boot, in order."}),
    (
        "--limit",
        "limits",
        {"metavar": "WHAT=VALUE", "help": "memory=3GiB, cpu=150%, disk=20MiB/s, iops=500, console=1MiB/s."},
    ),
    ("--port", "ports", {"metavar": "HOST:GUEST", "help": "A port of this host for one of the machine."}),
    (
        "--mount",
        "mounts",
        {"metavar": "DIR:PATH[:rw]", "help": "A directory of this host there; read-only without :rw."},
    ),
]
_SHORT = {"--memory": "-m", "--port": "-p"}


def spec_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Every setting of a machine as an option; `spec_of` collects them."""
    options = [click.option(flag, *_short(flag), **more) for flag, more in _FLAGS]
    options += [click.option(flag, name, *_short(flag), multiple=True, **more) for flag, name, more in _LISTS]
    options += [
        click.option(
            "--display/--no-display", default=None, help="A screen, or none; without our agent it has one."
        ),
        click.option("--user-data", metavar="FILE", help="For an image that runs cloud-init."),
        click.option("--autostart", is_flag=True, help="Start it when the service starts."),
        click.option("--no-uplink", is_flag=True, help="No way out to the network."),
        click.option("--isolated", is_flag=True, help="A network card that leads nowhere."),
        click.option(
            "--require-jail", is_flag=True, help="Refuse where this host cannot give the whole jail."
        ),
        click.option(
            "--no-ssh-keys", is_flag=True, help="Not the public keys in ~/.ssh, which may log in else."
        ),
        click.option("-f", "--file", "spec_file", metavar="TOML", help="A machine spec; flags go before it."),
        click.option("--force", is_flag=True, help="More than this host has, all the same."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def _short(flag: str) -> list[str]:
    return [_SHORT[flag]] if flag in _SHORT else []


def spec_of(image: str | None, given: dict[str, Any]) -> dict[str, Any]:
    """The spec that a spec file and the flags describe together."""
    data: dict[str, Any] = {}
    if given["spec_file"]:
        from bough.client.sources import resolve_sources
        from bough.spec import load_toml

        path = Path(given["spec_file"])
        # What the file names is relative to the file.
        data = resolve_sources(load_toml(path), path.absolute().parent)
    for flag, _ in _FLAGS:
        name = flag[2:].replace("-", "_")
        if given[name] is not None:
            data[name] = given[name]
    for name in ("kernel", "initrd"):
        if name in data:  # the service works in another directory
            data[name] = str(Path(data[name]).expanduser().absolute())
    if image is not None:
        data["image"] = image
    _add_media(data, given)
    if given["no_uplink"]:
        data["uplink"] = False
    if given["isolated"]:
        data["uplink"] = "isolated"
    data.update({name: True for name in ("require_jail", "autostart") if given[name]})
    _add_lists(data, given)
    return data


def _add_media(data: dict[str, Any], given: dict[str, Any]) -> None:
    if given["display"] is not None:
        data["display"] = given["display"]
    for name in ("cdrom", "floppy"):
        if name in data and Path(data[name]).expanduser().is_file():
            data[name] = _import(Path(data[name]))
    if given["user_data"] is not None:
        try:
            data["user_data"] = Path(given["user_data"]).expanduser().read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidInput(f"--user-data {given['user_data']}: {error}") from error


def _import(path: Path) -> str:
    from bough.cli.output import progress
    from bough.cli.service import connect

    with progress() as report:
        body = {"source": str(path.expanduser().absolute())}
        return str(connect().long_call("POST", "/images/import", body, progress=report)["digest"])


def _add_lists(data: dict[str, Any], given: dict[str, Any]) -> None:
    keys = [_read_key(text) for text in given["ssh_keys"]]
    if not given["no_ssh_keys"] and not keys and not data.get("ssh_keys"):
        keys = _own_keys()
    added: dict[str, list[Any]] = {
        "disks": list(given["disks"]),
        "users": [{"name": name, "sudo": True, "ssh_keys": keys} for name in given["users"]],
        "ssh_keys": keys,
        "files": [_read_file(text) for text in given["files"]],
        "commands": list(given["commands"]),
        "ports": list(given["ports"]),
        "mounts": [_read_mount(text) for text in given["mounts"]],
    }
    for name, values in added.items():
        if values:
            data[name] = [*data.get(name, []), *values]
    for name, flag in (("environment", "--env"), ("limits", "--limit")):
        if given[name]:
            data[name] = {**data.get(name, {}), **dict(_pair(flag, text) for text in given[name])}


def _read_mount(text: str) -> Any:
    from bough.client.sources import resolve_mount

    return resolve_mount(text)


def _pair(flag: str, text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise InvalidInput(f"{flag} takes NAME=VALUE, not {text!r}")
    return name, value


def _read_key(text: str) -> str:
    path = Path(text).expanduser()
    if " " in text.strip():
        return text.strip()
    try:
        return path.read_text().strip()
    except OSError as error:
        raise InvalidInput(
            f"--ssh-key {text}: {error.strerror}", hint="name a public key, a .pub file"
        ) from error


def _own_keys() -> list[str]:
    found = []
    for path in sorted((Path.home() / ".ssh").glob("id_*.pub")):
        try:
            found.append(path.read_text().strip())
        except OSError:
            continue
    return [key for key in found if key and "\n" not in key]


def _read_file(text: str) -> dict[str, Any]:
    source, colon, path = text.partition(":")
    if not colon:
        raise InvalidInput(f"--copy takes FILE:PATH, not {text!r}")
    import base64

    try:
        content = Path(source).expanduser().read_bytes()
        mode = Path(source).expanduser().stat().st_mode & 0o777
    except OSError as error:
        raise InvalidInput(f"--copy {source}: {error.strerror}") from error
    return {"path": path, "content_base64": base64.b64encode(content).decode(), "mode": f"{mode:04o}"}
