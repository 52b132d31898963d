"""Show the options that describe a machine in a section of their own, below a command's other options."""

from __future__ import annotations

import click


class MachineOption(click.Option):
    """An option that describes a machine, such as `--memory`."""


class SectionedCommand(click.Command):
    """A command whose `--help` has the machine's options last: there are four times as many of them."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        options = [one for one in self.get_params(ctx) if isinstance(one, click.Option)]
        for title, is_machine in (("Options", False), ("Options of the machine", True)):
            chosen = [one for one in options if isinstance(one, MachineOption) is is_machine]
            records = [record for one in chosen if (record := one.get_help_record(ctx)) is not None]
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)
