"""Parse the words of `exec` and `run`. The last words are a command of the guest."""

from __future__ import annotations

import click

from bough.cli.help_sections import SectionedCommand


class CommandAfterName(SectionedCommand):
    """A command with the words `NAME COMMAND...`. Options stand before NAME, or between NAME and `--`.

    Without `--`, the words after NAME are the command. A command that begins with a dash is then refused: the
    dash is an option in the wrong place.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if "--" in args:
            at = args.index("--")
            args = [*self._sort(ctx, args[:at]), *args[at:]]
        rest = super().parse_args(ctx, args)
        command = ctx.params.get("command") or ()
        if command and command[0].startswith("-") and command[0] != "--":
            from bough.cli.main import BoughUsage

            name, path = self._names()[0].upper(), ctx.command_path
            raise BoughUsage(
                f"{command[0]!r} stands where the command begins",
                f"options go before {name}, or between {name} and `--`: {path} {name} ... -- COMMAND",
            )
        return rest

    def _names(self) -> list[str]:
        return [param.name or "" for param in self.params if isinstance(param, click.Argument)]

    def _sort(self, ctx: click.Context, head: list[str]) -> list[str]:
        """Return the words before the `--`, with the options moved from behind NAME to the front."""
        name, rest = self._cut(ctx, head)
        if name is None or not rest or not rest[0].startswith("-"):
            return head
        options = [*head[: len(head) - len(rest) - 1], *rest]
        second = self._cut(ctx, options)[0]
        if second is not None:
            from bough.cli.main import BoughUsage

            place = f"between {name} and `--`"
            raise BoughUsage(
                f"{second!r} stands {place}, where only options do", f"{ctx.command_path} --help"
            )
        return [*options, name]

    def _cut(self, ctx: click.Context, words: list[str]) -> tuple[str | None, list[str]]:
        """Return NAME, and the words after NAME."""
        name, command = self._names()
        values, _, _ = self.make_parser(ctx).parse_args(list(words))
        # A missing word is None, or since click 8.3 a special value.
        found, rest = values.get(name), values.get(command)
        return found if isinstance(found, str) else None, list(rest) if isinstance(
            rest, (list, tuple)
        ) else []
