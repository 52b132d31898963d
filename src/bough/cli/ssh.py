"""ssh, ssh-config: how OpenSSH and what uses it reach a machine."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bough.cli.service import NAME, connect, machine_path
from bough.errors import HostLacks, InvalidInput

if TYPE_CHECKING:
    from bough.paths import Home


@click.command("ssh-config")
@click.argument("name", type=NAME, required=False)
def ssh_config(name: str | None) -> None:
    """Print Host entries for all machines or one: bough ssh-config >> ~/.ssh/config

    ssh, scp, rsync and Ansible then know each machine by its name. They go through the agent: no address, no
    port of this host, no network in the machine is needed. An entry stays right when the machine is made anew
    under the same name.
    """
    from bough.client.ssh import own_key
    from bough.paths import Home

    service, home = connect(), Home.from_environment()
    machines = [service.get(machine_path(name))] if name else service.get("/machines")
    own_key(home)
    # The blank line ends what an editor has left without a line end.
    print("".join("\n" + render_entry(home, machine["name"], _user(machine)) for machine in machines), end="")


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("name", type=NAME)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def ssh(name: str, arguments: tuple[str, ...]) -> None:
    """Run ssh to a machine, with ARGUMENTS of ssh.

    It logs in as the first user of the machine's spec, else as root, with bough's own key; -l USER as another
    user. Your ~/.ssh is not needed, and not read.
    """
    import shutil

    from bough.client.ssh import own_key
    from bough.paths import Home
    from bough.storage import write_atomically

    program = shutil.which("ssh")
    if program is None:
        raise HostLacks("ssh is not installed", hint="bough shell needs none")
    machine, home = connect().get(machine_path(name)), Home.from_environment()
    own_key(home)
    # A file that stays: ssh closes all descriptors that it is handed before it reads its configuration. It is
    # the same for all machines of that user name, and -l on the command line goes before it.
    user = _user(machine)
    path, content = home.ssh_config(user), render_entry(home, "*", user).encode()
    if not path.exists() or path.read_bytes() != content:
        write_atomically(path, content, durable=False)
    os.execv(program, [program, "-F", str(path), machine["name"], *arguments])


def _user(machine: dict[str, Any]) -> str:
    users = machine["spec"]["users"]
    return str(users[0]["name"]) if users else "root"


def render_entry(home: Home, host: str, user: str) -> str:
    """Of ssh_config(5), for a machine or, where `host` is "*", for each.

    Host keys are not looked at: the bytes go through the agent of that very machine, so a key would prove
    nothing more, and a machine made anew under its name, a fork and a restored one have others.
    """
    name = "%n" if host == "*" else host
    words = ["proxy", "--wait", "30s", "--authorize", "%r", name, "%p"]
    command = " ".join([*map(_quote_for_command, [*_environment(home), *_program()]), *words])
    lines = [
        f"Host {host}",
        *([] if host == "*" else [f"    HostName {host}"]),
        f"    User {user}",
        f"    ProxyCommand {command}",
        # An agent with many keys would offer them first, and sshd closes after six.
        f"    IdentityFile {_quote_for_config(str(home.ssh_key))}",
        "    IdentitiesOnly yes",
        "    StrictHostKeyChecking no",
        "    UserKnownHostsFile /dev/null",
        "    GlobalKnownHostsFile /dev/null",
        # Else ssh says at each login that it has learned a new key.
        "    LogLevel ERROR",
        "",
    ]
    return "\n".join(lines)


def _environment(home: Home) -> list[str]:
    return ["env", f"BOUGH_HOME={home.root}"]


def _program() -> list[str]:
    """What this command was called as, in words that work from any directory."""
    called = Path(sys.argv[0]).absolute()
    if called.name != "__main__.py" and called.is_file() and os.access(called, os.X_OK):
        return [str(called)]
    return [f"PYTHONPATH={Path(__file__).absolute().parents[2]}", sys.executable, "-m", "bough"]


def _quote_for_command(word: str) -> str:
    """For a shell, after ssh has replaced its own % tokens."""
    return shlex.quote(_checked(word)).replace("%", "%%")


def _quote_for_config(path: str) -> str:
    if "${" in path:
        raise InvalidInput(
            f"ssh takes '${{' in {path!r} for a variable of the environment",
            hint="set BOUGH_HOME to a directory without '${' in its name",
        )
    escaped = _checked(path).replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped}"'


def _checked(text: str) -> str:
    if "\n" in text:
        raise InvalidInput(f"ssh's configuration cannot hold a line end, which {text!r} has")
    return text
