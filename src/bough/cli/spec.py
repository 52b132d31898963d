"""Translate the flags for a machine to the dict of a spec. The service validates the spec."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bough.cli.docker_options import docker_options, mount_of_volume, percent_of, variables_of
from bough.cli.help_sections import MachineOption
from bough.client.spec_files import resolve_image
from bough.client.user_data import read_user_data
from bough.errors import InvalidInput
from bough.spec.settings import Flag, flags

if TYPE_CHECKING:
    from bough.client.machine_file import MachineFile


@dataclass(frozen=True)
class GivenSpec:
    """The settings that a file and the options describe together."""

    data: dict[str, Any]
    file: MachineFile | None = None

    @contextmanager
    def located(self) -> Iterator[None]:
        """Run the block. An error about a setting of the file gets the file's lines."""
        try:
            yield
        except InvalidInput as error:
            if self.file is None:
                raise
            raise self.file.locate(error, self.data) from None


def spec_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add an option for every setting of a machine, from the table of settings; `spec_of` collects them."""
    options = [
        click.option(*_names(setting, flag), cls=MachineOption, **_how(flag)) for setting, flag in flags()
    ]
    options += docker_options()
    options += [
        click.option(
            "--network",
            "networks",
            cls=MachineOption,
            multiple=True,
            metavar="NAME",
            help="Connect the machine to this network, beside its uplink. May be repeated.",
        ),
        click.option(
            "--no-ssh-keys",
            cls=MachineOption,
            is_flag=True,
            help="Do not authorize the public keys in ~/.ssh.",
        ),
        click.option(
            "-f",
            "--file",
            "spec_file",
            metavar="TOML",
            help="File with settings of the machine, in TOML; options override the file.",
        ),
        click.option("--force", is_flag=True, help="Allow more memory, disk or vCPUs than the host has."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def _names(setting: str, flag: Flag) -> list[str]:
    """Return the option's spellings and the parameter's name: the setting's name; a switch has a separate
    name.
    """
    parameter = [] if flag.kind == "switch" else [setting]
    return [flag.name, *([flag.short] if flag.short else []), *parameter]


def _how(flag: Flag) -> dict[str, Any]:
    text = f"{flag.help} May be repeated." if flag.many else flag.help
    how: dict[str, Any] = {"help": text, "metavar": flag.metavar}
    if flag.kind == "switch":
        return {"help": flag.help, "is_flag": True}
    if flag.kind == "pair":
        return {"help": flag.help, "default": None}
    return how | {"type": int if flag.kind == "number" else str, "multiple": flag.many}


def spec_of(image: str | None, given: dict[str, Any]) -> GivenSpec:
    """Return the spec that a spec file and the flags describe together."""
    data: dict[str, Any] = {}
    file = None
    if given["spec_file"]:
        from bough.client.machine_file import load_machine_file

        file = load_machine_file(Path(given["spec_file"]))
        data = dict(file.data)
    for setting, flag in flags():
        if flag.kind == "switch":
            if given[flag.name[2:].replace("-", "_")]:
                data[setting] = flag.value
        elif not flag.many and setting != "user_data" and given[setting] is not None:
            data[setting] = given[setting]
    if given["entrypoint"] is not None:  # one word, as for docker
        data["entrypoint"] = [given["entrypoint"]] if given["entrypoint"] else []
    for name in ("kernel", "initrd"):
        if name in data:  # the service has another working directory
            data[name] = str(Path(data[name]).expanduser().absolute())
    if image is not None:
        data["image"] = resolve_image(image)
    _add_media(data, given)
    _add_lists(data, given)
    return GivenSpec(data, file)


def _add_media(data: dict[str, Any], given: dict[str, Any]) -> None:
    for name in ("cdrom", "floppy"):
        if name in data and Path(data[name]).expanduser().is_file():
            data[name] = _import(Path(data[name]))
    if given["user_data"] is not None:
        try:
            data["user_data"] = read_user_data(Path(given["user_data"]).expanduser())
        except OSError as error:
            raise InvalidInput(f"--user-data {given['user_data']}: {error}") from error


def _import(path: Path) -> str:
    from bough.cli.output import progress
    from bough.cli.service import connect

    with progress() as report:
        return connect().import_image(path, progress=report).digest


def _add_lists(data: dict[str, Any], given: dict[str, Any]) -> None:
    keys = [_read_key(text) for text in given["ssh_keys"]]
    if not given["no_ssh_keys"] and not keys and not data.get("ssh_keys"):
        keys = _own_keys()
    added: dict[str, list[Any]] = {
        "nics": [*given["nics"], *_cards(data, given)],
        "disks": list(given["disks"]),
        "users": [{"name": name, "sudo": True, "ssh_keys": keys} for name in given["users"]],
        "ssh_keys": keys,
        "files": [_read_file(text) for text in given["files"]],
        "commands": list(given["commands"]),
        "ports": list(given["ports"]),
        "mounts": [
            *(_read_mount(text) for text in given["mounts"]),
            *(mount_of_volume(text) for text in given["volumes"]),
        ],
    }
    for name, values in added.items():
        if values:
            data[name] = [*data.get(name, []), *values]
    added_pairs = {
        "environment": variables_of(given["env_files"], given["environment"]),
        "limits": {
            **({} if given["cpus"] is None else {"cpu": percent_of(given["cpus"])}),
            **dict(pair("--limit", text) for text in given["limits"]),
        },
    }
    for name, pairs in added_pairs.items():
        if pairs:
            data[name] = {**data.get(name, {}), **pairs}


def _cards(data: dict[str, Any], given: dict[str, Any]) -> list[str]:
    """Return the cards for --network. They add to the uplink if no card is listed."""
    if not given["networks"] or given["nics"] or data.get("nics"):
        return list(given["networks"])
    uplink = data.pop("uplink", True)  # the setting is for machines without a list of cards
    first = {True: ["uplink"], "isolated": ["isolated"]}.get(uplink, [])
    return [*first, *given["networks"]]


def _read_mount(text: str) -> Any:
    from bough.client.spec_files import resolve_mount

    return resolve_mount(text)


def pair(flag: str, text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise InvalidInput(f"{flag} expects NAME=VALUE, got {text!r}")
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
        raise InvalidInput(f"--copy expects FILE:PATH, got {text!r}")
    import base64

    try:
        content = Path(source).expanduser().read_bytes()
        mode = Path(source).expanduser().stat().st_mode & 0o777
    except OSError as error:
        raise InvalidInput(f"--copy {source}: {error.strerror}") from error
    return {"path": path, "content_base64": base64.b64encode(content).decode(), "mode": f"{mode:04o}"}
