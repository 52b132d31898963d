"""The commands ssh and ssh-config: OpenSSH, rsync and others reach a machine."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bough.cli.machine_choice import machine_named, machine_options
from bough.cli.project_choice import chosen_project
from bough.cli.service import NAME, connect
from bough.errors import HostLacks, InvalidInput

if TYPE_CHECKING:
    from bough.contract.answers import MachineInfo
    from bough.paths import Home


#: A name that ends so leads to the machine whose name is before the ending, also to a machine of later.
SUFFIX = ".bough"


@click.command("ssh-config")
@machine_options
@click.argument("name", type=NAME, required=False)
@click.option(
    "--wildcard",
    is_flag=True,
    help=f"Print one entry instead, for NAME{SUFFIX} of each machine, also of later ones.",
)
def ssh_config(name: str | None, wildcard: bool) -> None:
    """Print Host entries for all machines or one: bough ssh-config >> ~/.ssh/config

    With these entries ssh, scp, rsync and Ansible reach each machine by name, through the agent. No address,
    port of the host or network in the machine is needed. An entry also fits a new machine of the same name.

    The entry of --wildcard logs in as root. With this entry, DOCKER_HOST=ssh://NAME.bough uses Docker in a
    machine.
    """
    from bough.client.ssh import own_key
    from bough.paths import Home

    if wildcard and name is not None:
        raise click.UsageError("--wildcard is for all machines: use it without NAME")
    home = Home.from_environment()
    if wildcard:
        home.create()  # no service may have run yet
        entries = [render_entry(home, f"*{SUFFIX}", "root")]
    else:
        entries = [render_entry(home, machine.name, _user(machine)) for machine in _chosen(name)]
    own_key(home)
    # The blank line is for a file whose last line has no line end.
    print("".join(f"\n{entry}" for entry in entries), end="")


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@machine_options
@click.argument("name", type=NAME)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def ssh(name: str, arguments: tuple[str, ...]) -> None:
    """Run ssh to a machine, with ARGUMENTS of ssh.

    The login user is the first user of the machine's spec, else root; -l USER names another. The key is
    bough's own: your ~/.ssh is neither needed nor read.
    """
    import shutil

    from bough.client.ssh import own_key
    from bough.paths import Home
    from bough.storage import write_atomically

    program = shutil.which("ssh")
    if program is None:
        raise HostLacks("ssh is not installed", hint="bough shell NAME works without ssh")
    machine, home = machine_named(name).info(), Home.from_environment()
    own_key(home)
    # A permanent file: ssh closes all inherited descriptors before the configuration is read. All machines
    # with the same user name share the file, and -l on the command line overrides the user.
    user = _user(machine)
    path, content = home.ssh_config(user), render_entry(home, "*", user).encode()
    if not path.exists() or path.read_bytes() != content:
        write_atomically(path, content, durable=False)
    os.execv(program, [program, "-F", str(path), machine.name, *arguments])


def _chosen(name: str | None) -> list[MachineInfo]:
    """Return the machine of that name; without a name, all of the chosen project, or of the home."""
    if name is not None:
        return [machine_named(name).info()]
    project = chosen_project()
    if project is None:
        return connect().list_machines()
    return [machine.info() for machine in project.machines.values()]


def _user(machine: MachineInfo) -> str:
    users = machine.spec["users"]
    return str(users[0]["name"]) if users else "root"


def render_entry(home: Home, host: str, user: str) -> str:
    """Return an entry of ssh_config(5) for a machine, or for every machine if `host` is "*" or "*.bough".

    Host keys are not checked. The bytes go through the machine's own agent, so a key would prove no more. A
    new machine of the same name, a fork and a restored machine have other keys.
    """
    is_pattern = host.startswith("*")
    suffix = ["--suffix", SUFFIX] if host == f"*{SUFFIX}" else []
    words = ["proxy", "--wait", "30s", "--authorize", "%r", *suffix, "%n" if is_pattern else host, "%p"]
    command = " ".join([*map(_quote_for_command, [*_environment(home), *_program()]), *words])
    lines = [
        f"Host {host}",
        *([] if is_pattern else [f"    HostName {host}"]),
        f"    User {user}",
        f"    ProxyCommand {command}",
        # An agent with many keys would offer its own keys first, and sshd disconnects after six.
        f"    IdentityFile {_quote_for_config(str(home.ssh_key))}",
        "    IdentitiesOnly yes",
        "    StrictHostKeyChecking no",
        "    UserKnownHostsFile /dev/null",
        "    GlobalKnownHostsFile /dev/null",
        # Otherwise ssh reports a new host key at each login.
        "    LogLevel ERROR",
        "",
    ]
    return "\n".join(lines)


def _environment(home: Home) -> list[str]:
    return ["env", f"BOUGH_HOME={home.root}"]


def _program() -> list[str]:
    """Return the words to call this program from any directory."""
    called = Path(sys.argv[0]).absolute()
    if called.name != "__main__.py" and called.is_file() and os.access(called, os.X_OK):
        return [str(called)]
    return [f"PYTHONPATH={Path(__file__).absolute().parents[2]}", sys.executable, "-m", "bough"]


def _quote_for_command(word: str) -> str:
    """Quote a word for the shell that runs after ssh has replaced % tokens."""
    return shlex.quote(_checked(word)).replace("%", "%%")


def _quote_for_config(path: str) -> str:
    if "${" in path:
        raise InvalidInput(
            f"ssh would read '${{' in {path!r} as an environment variable",
            hint="set BOUGH_HOME to a directory without '${' in its name",
        )
    escaped = _checked(path).replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped}"'


def _checked(text: str) -> str:
    if "\n" in text:
        raise InvalidInput(f"ssh's configuration cannot hold the line end in {text!r}")
    return text
