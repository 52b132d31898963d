"""Parse the words of `exec` and `run`. The last words are a command of the guest."""

from __future__ import annotations

import click

from bough.cli.help_sections import SectionedCommand


class CommandAfterName(SectionedCommand):
    """A command with the words `NAME COMMAND...`. Options stand before NAME, or between NAME and `--`.

    Without `--`, the words after NAME are the command. A command that begins with a dash is then refused: the
    dash is an option in the wrong place. With a spec file, which may have the image, NAME may be left out:
    the words after `--` are then the command.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        is_unnamed = False
        if "--" in args:
            at = args.index("--")
            is_unnamed = self._is_unnamed(ctx, args[:at])
            head = [*args[:at], ""] if is_unnamed else self._sort(ctx, args[:at])
            args = [*head, *args[at:]]
        rest = super().parse_args(ctx, args)
        if is_unnamed:
            ctx.params[self._names()[0]] = None
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

    def _is_unnamed(self, ctx: click.Context, head: list[str]) -> bool:
        """Return whether the words before `--` are options alone, and one of them names a spec file."""
        values, _, _ = self.make_parser(ctx).parse_args(list(head))
        name = values.get(self._names()[0])
        return isinstance(values.get("spec_file"), str) and not isinstance(name, str)

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
