"""Find the commands and options that tests with real machines run, from the source of the tests.

The module imports and runs no test. Found are: calls of the `cli` fixture (tests/acceptance/conftest.py),
lists that begin with BOUGH, and scripts of the pages that test_pages.py runs. `cli.error(...)` does not
count: a failing command does not show its effect. Words that are known only at run time count as values.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import click

from bough.cli.main import cli
from bough.cli.spec import spec_options
from tests.pages import PAGES, commands_in_script, script_of

ROOT = Path(__file__).resolve().parents[1]
TESTS = tuple(ROOT / "tests" / name for name in ("acceptance", "machines"))
#: All commands in this file fail on purpose.
BAD_INPUT = "test_bad_input.py"
UNKNOWN = "x"
#: A word, or UNKNOWN, with all its possible values.
Words = list[str]


@dataclass(frozen=True)
class Leaf:
    """A command without subcommands, and its options by their first name."""

    path: tuple[str, ...]
    command: click.Command
    context: click.Context

    @property
    def name(self) -> str:
        return " ".join(self.path)

    def options(self) -> Iterator[str]:
        for parameter in self.command.params:
            if isinstance(parameter, click.Option) and not parameter.hidden:
                yield self.title(_long(parameter.opts))
                if parameter.secondary_opts:
                    yield self.title(_long(parameter.secondary_opts))

    def title(self, option: str) -> str:
        """Name an option. Options of a machine's spec, and those that choose a machine's project, are the
        same code in each command, so they count once.
        """
        if option in _SPEC_OPTIONS and self.name in _TAKE_SPEC:
            return f"{SPEC} {option}"
        chosen = any(is_choice(one) and option in one.opts for one in self.command.params)
        return f"{CHOICE if chosen else self.name} {option}"

    def given(self, words: Words) -> Iterator[str]:
        """Yield the options among `words`, as the command itself parses them."""
        try:
            values, _, order = self.command.make_parser(self.context).parse_args(list(words))
        except click.UsageError:
            return
        for parameter in order:
            if isinstance(parameter, click.Option):
                is_second = parameter.secondary_opts and values.get(parameter.name or "") is False
                yield self.title(_long(parameter.secondary_opts if is_second else parameter.opts))


def is_choice(parameter: click.Parameter) -> bool:
    """Return whether the parameter is an option of bough.cli.machine_choice.machine_options."""
    return parameter.name in ("of_project", "of_file")


def _long(names: list[str]) -> str:
    return max(names, key=len)


@click.command()
@spec_options
def _takes_spec(**_: object) -> None: ...


CHOICE = "commands with a machine"
SPEC = "create, run, standby"
_TAKE_SPEC = SPEC.split(", ")
_SPEC_OPTIONS = frozenset(
    _long(names)
    for option in _takes_spec.params
    if isinstance(option, click.Option)
    for names in (option.opts, option.secondary_opts)
    if names
)


def leaves() -> dict[tuple[str, ...], Leaf]:
    """Return all commands by their path."""
    root = click.Context(cli, info_name="bough")
    return {leaf.path: leaf for leaf in _leaves(cli, (), root)}


def _leaves(command: click.Command, path: tuple[str, ...], context: click.Context) -> Iterator[Leaf]:
    if not isinstance(command, click.Group):
        yield Leaf(path, command, context)
        return
    if command.invoke_without_command:
        yield Leaf(path, command, context)
    for name in command.list_commands(context):
        inner = command.get_command(context, name)
        assert inner is not None
        yield from _leaves(inner, (*path, name), click.Context(inner, info_name=name, parent=context))


@dataclass
class Run:
    """The places found: "snapshot create" and "snapshot create --name" -> place."""

    found: dict[str, str] = field(default_factory=dict)
    _leaves: dict[tuple[str, ...], Leaf] = field(default_factory=leaves)

    def add(self, words: Words, where: str, *more: str) -> None:
        leaf, rest = self._find(words)
        if leaf is not None:
            self.found.setdefault(leaf.name, where)
            for option in [*leaf.given(rest), *(leaf.title(option) for option in more)]:
                self.found.setdefault(option, where)

    def _find(self, words: Words) -> tuple[Leaf | None, Words]:
        for length in (3, 2, 1):
            if tuple(words[:length]) in self._leaves:
                return self._leaves[tuple(words[:length])], words[length:]
        return None, []


def wanted() -> Iterator[str]:
    for leaf in leaves().values():
        yield leaf.name
        yield from leaf.options()


# -- in the tests ---------------------------------------------------------------------------------------


def commands_in_tests(run: Run) -> None:
    for folder in TESTS:
        for path in sorted(folder.glob("*.py")):
            if path.name != BAD_INPUT:
                _Reader(path, run).visit(ast.parse(path.read_text()))


class _Reader(ast.NodeVisitor):
    """A visitor that keeps the possible values of names: assignments, loops, parameters of tests."""

    def __init__(self, path: Path, run: Run) -> None:
        self._path, self._run = path, run
        self._names: list[dict[str, list[ast.expr]]] = [{}]

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self._names.append({})
        for decorator in node.decorator_list:
            self._take_parameters(decorator)
        for argument in node.args.args:
            if isinstance(argument.annotation, ast.Name) and argument.annotation.id == "Cli":
                self._names[-1][argument.arg] = [argument.annotation]
        for inner in ast.walk(node):
            self._take_assignment(inner)
        for statement in node.body:
            self.visit(statement)
        self._names.pop()

    def visit_Module(self, node: ast.Module) -> None:
        for statement in node.body:
            self._take_assignment(statement)
        self.generic_visit(node)

    def _take_assignment(self, node: ast.AST) -> None:
        if isinstance(node, ast.Assign):
            for target in node.targets:
                self._bind(target, [node.value])
        elif isinstance(node, ast.For) and isinstance(node.iter, ast.List | ast.Tuple):
            self._bind(node.target, node.iter.elts)

    def _take_parameters(self, node: ast.expr) -> None:
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("parametrize"):
            names, values = node.args[:2]
            if isinstance(names, ast.Tuple) and isinstance(values, ast.List):
                self._bind(names, values.elts)
            elif isinstance(names, ast.Constant) and isinstance(values, ast.List):
                self._names[-1].setdefault(str(names.value), []).extend(values.elts)

    def _bind(self, target: ast.expr, values: list[ast.expr]) -> None:
        if isinstance(target, ast.Name):
            self._names[-1].setdefault(target.id, []).extend(values)
        elif isinstance(target, ast.Constant):
            self._names[-1].setdefault(str(target.value), []).extend(values)
        elif isinstance(target, ast.Tuple):
            for number, inner in enumerate(target.elts):
                rows = [row for row in values if isinstance(row, ast.Tuple | ast.List)]
                self._bind(inner, [row.elts[number] for row in rows if number < len(row.elts)])

    def visit_Call(self, node: ast.Call) -> None:
        root, _, method = ast.unparse(node.func).partition(".")
        if self._is_cli(root) and method in ("", "text", "json", "popen"):
            more = ["--json"] if method == "json" else []
            self._add(node.args, more, node.lineno)
        elif node.args and isinstance(node.args[0], ast.Name) and self._is_cli(node.args[0].id):
            self._add(node.args[1:], [], node.lineno)
        elif root.startswith("Cli(") or (isinstance(node.func, ast.Attribute) and root == "Cli"):
            self._add(node.args, [], node.lineno)
        if not (self._is_cli(root) and method == "error"):
            self.generic_visit(node)

    def _is_cli(self, name: str) -> bool:
        return name == "cli" or any(
            ast.unparse(value).startswith("Cli") for scope in self._names for value in scope.get(name, [])
        )

    def visit_List(self, node: ast.List) -> None:
        if node.elts and ast.unparse(node.elts[0]) in ("BOUGH", "str(BOUGH)"):
            self._add(node.elts[1:], [], node.lineno)
        elif [word for one in node.elts[1:3] for word in self._words(one)] == ["-m", "bough"]:
            self._add(node.elts[3:], [], node.lineno)
        self.generic_visit(node)

    def _add(self, arguments: list[ast.expr], more: Words, line: int) -> None:
        where = f"{self._path.relative_to(ROOT)}:{line}"
        if not arguments:
            return
        first, rest = arguments[0], [word for one in arguments[1:] for word in self._words(one)]
        for begin in self._choices(first):
            self._run.add([*begin, *rest], where, *more)

    def _choices(self, node: ast.expr) -> list[Words]:
        """Return the possible first words, each by itself."""
        inner = node.value if isinstance(node, ast.Starred) else node
        if isinstance(inner, ast.Name):
            return [self._words(value) for scope in self._names for value in scope.get(inner.id, [])]
        return [self._words(node)]

    def _words(self, node: ast.expr) -> Words:  # noqa: PLR0911 - one for each kind of expression
        match node:
            case ast.Constant():
                return [str(node.value)]
            case ast.Starred():
                return self._words(node.value)
            case ast.List() | ast.Tuple():
                return [word for one in node.elts for word in self._words(one)]
            case ast.JoinedStr():
                parts = [str(p.value) if isinstance(p, ast.Constant) else UNKNOWN for p in node.values]
                return ["".join(parts)]
            case ast.Call(func=ast.Attribute(value=ast.Constant(value=str() as text), attr="split")):
                return text.split()
            case ast.Name():
                return self._named(node.id)
            case _:
                return [UNKNOWN]

    def _named(self, name: str) -> Words:
        found = [value for scope in self._names for value in scope.get(name, [])]
        known = [value for value in found if isinstance(value, ast.Constant | ast.List | ast.Tuple)]
        return [word for value in known for word in self._words(value)] or [UNKNOWN]


def commands_in_pages(run: Run) -> None:
    for page in PAGES:
        for words in commands_in_script(script_of(page)):
            run.add(words, page)
