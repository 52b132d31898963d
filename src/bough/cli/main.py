"""The commands, each loaded when it is called.

Start-up time is felt at every call, so this file imports click and nothing else that takes time.
"""

from __future__ import annotations

import importlib
import sys

import click

from bough import __version__

#: command -> (module below bough.cli, attribute, help in one line), in the order of `bough --help`.
COMMANDS = {
    "run": ("run", "run", "Run a command on a new machine, gone afterwards."),
    "spares": ("spares", "spares", "Keep machines that stand by for the next run or fork."),
    "create": ("life", "create", "Create a machine, stopped."),
    "start": ("life", "start", "Start a machine and wait until it answers."),
    "stop": ("life", "stop", "Ask a machine to power off; after a deadline pull the plug."),
    "restart": ("life", "restart", "Stop and start a machine."),
    "pause": ("life", "pause", "Stop a machine's processors; its memory stays."),
    "suspend": ("life", "suspend", "Put a machine's memory on disk, and end its process."),
    "resume": ("life", "resume", "Let a paused or suspended machine go on."),
    "rename": ("life", "rename", "Give a machine another name."),
    "snapshot": ("snapshot", "snapshot", "Take, list and delete snapshots."),
    "fork": ("snapshot", "fork", "Make new machines that go on from another or a snapshot."),
    "restore": ("snapshot", "restore", "Put a machine back to a snapshot."),
    "export": ("bundle", "export", "Write a machine to a file, to go on with elsewhere."),
    "import": ("bundle", "import_bundle", "Take up a machine that was exported."),
    "bundle": ("bundle", "bundle", "Look at bundles."),
    "delete": ("life", "delete", "Delete machines and their disks."),
    "list": ("look", "list_machines", "List the machines."),
    "info": ("look", "info", "Show all about a machine."),
    "logs": ("look", "logs", "Show what a machine printed on its console."),
    "wait": ("look", "wait", "Wait until a machine answers, or has stopped."),
    "events": ("look", "events", "Show what happens to machines, as it happens."),
    "exec": ("execute", "exec_command", "Run a command in a machine."),
    "shell": ("execute", "shell", "Log in to a machine."),
    "console": ("execute", "console", "Attach to a machine's serial console."),
    "screenshot": ("screen", "screenshot", "Write a picture of a machine's screen, or its text."),
    "type": ("screen", "type_text", "Type on a machine's keyboard."),
    "screen": ("screen", "screen", "Show a machine's screen in a viewer."),
    "cp": ("copy", "cp", "Copy files and trees to and from a machine."),
    "port": ("reach", "port", "Forward ports of this host to a machine."),
    "mount": ("mounts", "mount", "Share a directory of this host with a machine."),
    "umount": ("mounts", "umount", "Share a directory with a machine no longer."),
    "proxy": ("reach", "proxy", "Carry standard input and output to a port of a machine."),
    "ssh": ("ssh", "ssh", "Run ssh to a machine."),
    "ssh-config": ("ssh", "ssh_config", "Print a configuration for ssh, rsync, Ansible."),
    "image": ("image", "image", "Build, list and delete images."),
    "doctor": ("host", "doctor", "Tell what this host has, lacks, and how to get it."),
    "serve": ("host", "serve", "Run the service in the foreground."),
    "version": ("host", "version", "Print the version."),
    "completion": ("host", "completion", "Print the completion script for a shell."),
}


class Commands(click.Group):
    """A group whose commands are imported when they are called."""

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
        # Without importing each of them for one line.
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, _, text) in COMMANDS.items()])


class BoughUsage(click.UsageError):
    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "--version", message="bough %(version)s")
def cli() -> None:
    """Whole machines over QEMU: build, run and keep them.

    Everything belongs to one BOUGH_HOME (by default ~/.local/share/bough, for root /var/lib/bough).
    Exit status: 0 done, 1 an error, 2 a wrong call, 124 out of time, 130 interrupted; `exec`, `run`
    and `ssh` pass on that of the command (128 and the signal's number where a signal ended it).
    """


def call() -> int:
    """Do what the command line says; the exit status.

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
