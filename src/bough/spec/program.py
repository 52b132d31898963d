"""The program and the commands of a machine from a container image, by the rules of `docker run` and
`docker exec`.

Pure: the guest finds programs, users and directories.

    program     ENTRYPOINT and CMD. Words after the image replace CMD. Another entrypoint replaces both
    environment PATH and HOSTNAME, then ENV, then `environment` of the spec, then the caller's
    user        the caller's, else the spec's, else USER, else root
    directory   the caller's, else the spec's, else WORKDIR, else /
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from bough.errors import InvalidInput
from bough.spec.container import DEFAULT_PATH, Container
from bough.spec.model import MachineSpec, PortSpec
from bough.spec.problems import Problem, raise_if_any

#: Programs that are inits: the machine gets them as process 1 (`init = "auto"`).
INITS = frozenset(
    {
        "/init",
        "/sbin/init",
        "/usr/sbin/init",
        "/bin/init",
        "/usr/bin/init",
        "/lib/systemd/systemd",
        "/usr/lib/systemd/systemd",
        "/bin/systemd",
        "/usr/bin/systemd",
        "/sbin/openrc-init",
        "/sbin/runit-init",
        "/usr/sbin/runit-init",
    }
)
#: Settings that only a machine from a container image has.
SETTINGS = ("entrypoint", "command", "user", "workdir", "init", "publish_exposed")


@dataclass(frozen=True)
class Program:
    """A program as the agent starts it.

    Attributes:
        argv: at least one word. A first word without a slash is looked for in the PATH of `env`.
        user: "name" or "id", either with ":group"; None: root.
        cwd: absolute; made if missing.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    user: str | None = None
    cwd: str = "/"
    stop_signal: str = "TERM"


def resolve_program(
    container: Container, spec: MachineSpec, arguments: Sequence[str] = (), *, hostname: str = ""
) -> Program:
    """Return the program of a machine, or of a run with `arguments`.

    Raises:
        InvalidInput: neither the image nor the spec names a program.
    """
    argv = program_words(container, spec, arguments)
    if not argv or not argv[0]:
        raise InvalidInput(
            f"{container.reference} names no program: no ENTRYPOINT and no CMD",
            hint="name one after the image, or by --entrypoint",
        )
    command = resolve_command(container, spec, argv, hostname=hostname)
    return replace(command, stop_signal=container.stop_signal)


def check_program(spec: MachineSpec, container: Container | None) -> None:
    """Check that a machine that runs a program has one. Raises InvalidInput."""
    if container is not None and has_program(container, spec):
        resolve_program(container, spec)


def program_words(container: Container, spec: MachineSpec, arguments: Sequence[str] = ()) -> tuple[str, ...]:
    """Return ENTRYPOINT and CMD after all replacements; empty: there is no program."""
    given = tuple(arguments) or spec.command
    if spec.entrypoint is not None:
        return (*spec.entrypoint, *(given or ()))
    return (*container.entrypoint, *(container.cmd if given is None else given))


def resolve_command(
    container: Container,
    spec: MachineSpec,
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    user: str | None = None,
    cwd: str | None = None,
    hostname: str = "",
) -> Program:
    """Return a command as `docker exec` starts one."""
    variables = {
        "PATH": DEFAULT_PATH,
        **({"HOSTNAME": hostname} if hostname else {}),
        **container.env,
        **spec.environment,
        **(env or {}),
    }
    home = spec.workdir or posixpath.normpath(posixpath.join("/", container.workdir))
    return Program(
        argv=tuple(argv),
        env=variables,
        user=_whole_user(user or spec.user or container.user),
        cwd=posixpath.join(home, cwd) if cwd else home,
    )


def _whole_user(text: str) -> str | None:
    """Return the user, with root for ":group" alone."""
    return f"0{text}" if text.startswith(":") else text or None


def has_image_init(container: Container, spec: MachineSpec) -> bool:
    """Return whether the image's program is process 1 of the machine, and not bough's init."""
    if spec.init != "auto":
        return spec.init == "image"
    words = program_words(container, spec)
    return bool(words) and words[0] in INITS


def image_init(container: Container | None, spec: MachineSpec) -> tuple[str, ...]:
    """Return the words of the image's init; empty: process 1 is bough's init, or the machine's own."""
    if container is None or not has_image_init(container, spec):
        return ()
    return program_words(container, spec)


def has_program(container: Container | None, spec: MachineSpec) -> bool:
    """Return whether bough's init starts a program after the machine's boot."""
    return container is not None and not has_image_init(container, spec)


def check_settings(spec: MachineSpec, container: Container | None) -> None:
    """Check the settings that need a container image.

    Raises:
        InvalidSpec: with all problems.
    """
    raise_if_any(list(_find_problems(spec, container)))


def _find_problems(spec: MachineSpec, container: Container | None) -> Iterator[Problem]:
    if container is None:
        for name in SETTINGS:
            if getattr(spec, name) != MachineSpec.model_fields[name].default:
                what = f"needs a container image, which {spec.image} is not"
                yield Problem(name, what, _INSTEAD.get(name, "remove this setting"))
    elif spec.init == "image" and not program_words(container, spec):
        yield Problem("init", f"{spec.image} names no program that could be process 1", "use 'bough'")


_INSTEAD = {
    "entrypoint": "start programs by units of the guest's init: see files and commands",
    "command": "`commands` run once at the first boot; `bough exec` runs a command",
    "user": "`users` makes users at the first boot; `bough exec -u` runs a command as a user",
    "workdir": "`bough exec -w` runs a command in a directory",
    "publish_exposed": "list the ports: -p HOST:GUEST",
}


def with_exposed_ports(spec: MachineSpec, container: Container | None) -> MachineSpec:
    """Return the spec with a forward from a free port of the host to each exposed TCP port."""
    if container is None or not spec.publish_exposed:
        return spec
    taken = {port.guest_port for port in spec.ports}
    more = tuple(PortSpec(guest_port=port) for port in exposed_ports(container) if port not in taken)
    return spec.model_copy(update={"ports": (*spec.ports, *more)})


def exposed_ports(container: Container) -> list[int]:
    """Return the exposed TCP ports, without repetitions. bough forwards TCP alone."""
    found: dict[int, None] = {}
    for text in container.ports:
        number, _, protocol = text.partition("/")
        if protocol in ("", "tcp") and number.isascii() and number.isdigit() and 0 < int(number) <= 65535:
            found[int(number)] = None
    return list(found)


def describe_container(container: Container | None) -> dict[str, Any] | None:
    """Return the API's description of a machine's container image."""
    if container is None:
        return None
    return {
        "reference": container.reference,
        "digest": container.digest,
        "ports": list(container.ports),
        "volumes": list(container.volumes),
        "labels": dict(container.labels),
    }
