"""The table of commands. Each command is imported when called.

Every call pays for start-up, so this module imports only click and small modules.
"""

from __future__ import annotations

import importlib
import sys

import click

from bough.version import __version__

#: command -> (module below bough.cli, attribute, help in one line), in the order of `bough --help`.
COMMANDS = {
    "run": ("run", "run", "Run a command on a new machine, then delete the machine."),
    "create": ("lifecycle", "create", "Create a machine, stopped."),
    "start": ("lifecycle", "start", "Start a machine and wait until the guest answers."),
    "stop": ("lifecycle", "stop", "Shut a machine down; cut its power after a deadline."),
    "restart": ("lifecycle", "restart", "Stop and start a machine, or a project."),
    "pause": ("lifecycle", "pause", "Pause a machine's vCPUs; its memory stays in RAM."),
    "suspend": ("lifecycle", "suspend", "Write a machine's memory to disk and end its process."),
    "resume": ("lifecycle", "resume", "Resume a paused or suspended machine."),
    "set": ("setting", "set_settings", "Change settings of a machine: memory, vCPUs, limits."),
    "rename": ("lifecycle", "rename", "Rename a machine."),
    "delete": ("lifecycle", "delete", "Delete machines and their disks."),
    "list": ("observe", "list_machines", "List the machines."),
    "info": ("observe", "info", "Show a machine's settings, process and failures."),
    "exec": ("execute", "exec_command", "Run a command in a machine."),
    "shell": ("execute", "shell", "Open a login shell in a machine."),
    "cp": ("copy", "cp", "Copy files and trees to and from a machine."),
    "ssh": ("ssh", "ssh", "Run ssh to a machine."),
    "ssh-config": ("ssh", "ssh_config", "Print a configuration for ssh, rsync, Ansible."),
    "console": ("execute", "console", "Attach to a machine's serial console."),
    "logs": ("logs", "logs", "Print the consoles of machines, or of a project."),
    "wait": ("observe", "wait", "Wait until a machine answers, or has stopped."),
    "events": ("observe", "events", "Print events of machines as they happen."),
    "screenshot": ("screen", "screenshot", "Write a picture of a machine's screen, or its text."),
    "type": ("screen", "type_text", "Type on a machine's keyboard."),
    "screen": ("screen", "screen", "Show a machine's screen in a viewer."),
    "snapshot": ("snapshot", "snapshot", "Take, list and delete snapshots."),
    "fork": ("snapshot", "fork", "Create machines or projects that continue from another or a snapshot."),
    "restore": ("snapshot", "restore", "Rewind a machine or a project to a snapshot."),
    "diff": ("differences", "diff", "Show what differs between machines, snapshots, images."),
    "standby": ("standby", "standby", "Keep standby machines for the next run or fork."),
    "export": ("bundle", "export", "Write a machine to a file, for another host."),
    "import": ("bundle", "import_bundle", "Create a machine from an exported file."),
    "bundle": ("bundle", "bundle", "Inspect bundles."),
    "network": ("network", "network", "Connect machines by private networks."),
    "port": ("ports", "port", "Forward ports of this host to a machine."),
    "proxy": ("ports", "proxy", "Connect standard input and output to a port of a machine."),
    "mount": ("mounts", "mount", "Share a directory of this host with a machine."),
    "umount": ("mounts", "umount", "Stop sharing a directory with a machine."),
    "fault": ("fault", "fault", "Break links and machines on purpose, and heal them."),
    "up": ("project", "up", "Bring up the machines and networks of bough.toml."),
    "down": ("project", "down", "Stop or delete a project."),
    "ps": ("project", "ps", "List the machines of a project, or all projects."),
    "config": ("project", "config", "Check bough.toml, and print it with variables filled in."),
    "top": ("project", "top", "Show load and memory of a project's machines."),
    "image": ("image", "image", "Build, download, import, list and delete images."),
    "doctor": ("host", "doctor", "Check this host: accelerators, jail, missing programs."),
    "serve": ("host", "serve", "Run the service in the foreground."),
    "version": ("host", "version", "Print the version."),
    "completion": ("host", "completion", "Print the completion script for a shell."),
}
#: Sections of `bough --help`: first command -> title.
SECTIONS = {
    "run": "Machines",
    "exec": "Inside a machine",
    "snapshot": "Snapshots, forks, files of machines",
    "network": "Networks, ports, directories, faults",
    "up": "Projects",
    "image": "Images, host, service",
}


def sections() -> list[tuple[str, list[str]]]:
    """Return the sections of `bough --help`: title and commands."""
    found: list[tuple[str, list[str]]] = []
    for name in COMMANDS:
        if name in SECTIONS:
            found.append((SECTIONS[name], []))
        found[-1][1].append(name)
    return found


class Commands(click.Group):
    """A group that imports a command when called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[cmd_name]
        command = getattr(importlib.import_module(f"bough.cli.{module}"), attribute)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            from difflib import get_close_matches

            close = get_close_matches(args[0], COMMANDS, n=1)
            hint = f"did you mean '{close[0]}'?" if close else "bough --help lists the commands"
            raise BoughUsage(f"no such command: {args[0]!r}", hint)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        # The table has the help lines, so that no command is imported.
        width = max(map(len, COMMANDS))  # the same in all sections
        for title, names in sections():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(width), COMMANDS[name][2]) for name in names])


class BoughUsage(click.UsageError):
    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "--version", message="bough %(version)s")
def cli() -> None:
    """Run whole virtual machines over QEMU: build, run, snapshot and fork them.

    Machines, images and snapshots belong to one BOUGH_HOME (default: ~/.local/share/bough, for root
    /var/lib/bough). Exit status: 0 done, 1 error, 2 usage error, 124 time-out, 130 interrupted. `exec`,
    `run`, `shell` and `ssh` pass on the status of the command (128 + N if signal N ended it).
    """


def call() -> int:
    """Run the command line and return the exit status.

    Raises:
        BoughError, KeyboardInterrupt, BrokenPipeError: see bough.cli.entry.
    """
    try:
        status = cli.main(prog_name="bough", standalone_mode=False)
        return status if isinstance(status, int) else 0
    except click.UsageError as error:
        print(f"error: {error.format_message()}", file=sys.stderr)
        command = error.ctx.command_path if error.ctx else "bough"
        print(f"\nhint: {getattr(error, 'hint', None) or f'{command} --help'}", file=sys.stderr)
        return 2
    except click.ClickException as error:
        print(f"error: {error.format_message()}", file=sys.stderr)
        return 1
    except click.Abort:
        raise KeyboardInterrupt from None
