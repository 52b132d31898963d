"""The client's part of a project: find and read bough.toml, with its variables, paths and files.

The service reads no file that a project names. The client sends the content.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bough.client.extended_files import ExtendedFiles
from bough.client.problem_lines import add_lines
from bough.client.spec_files import resolve_recipe, resolve_sources
from bough.errors import BoughError, InvalidInput, InvalidSpec, NotFound
from bough.spec.toml import load_toml, read_text

if TYPE_CHECKING:
    from bough.spec.problems import Problem

FILE_NAME = "bough.toml"
ENVIRONMENT_FILE = ".env"
_MOST_ENVIRONMENT_BYTES = 1024 * 1024
_PathIn = tuple[str | int, ...]


@dataclass(frozen=True)
class ProjectFile:
    """A project's file, read.

    Attributes:
        path: of the file, absolute.
        data: what `parse_project` takes: variables replaced, paths absolute, files with their content.
        name: name of the project.
    """

    path: Path
    data: dict[str, Any]
    name: str
    _text: str = field(repr=False, default="")

    def locate(self, error: InvalidSpec) -> InvalidSpec:
        """Return the error with the file's line of each problem, as `line`, and with `file`."""
        return _located(error, self.path, self._text, self.data)


def find_project_file(directory: Path | None = None) -> Path:
    """Return the bough.toml of the directory, or of the nearest directory above that has one.

    Raises:
        NotFound: no directory has one.
    """
    start = (directory or Path.cwd()).absolute()
    for one in (start, *start.parents):
        if (one / FILE_NAME).is_file():
            return one / FILE_NAME
    raise NotFound(
        f"no {FILE_NAME} in {start}, and none in the directories above",
        hint="name the project's file with --file, or the project with --project",
    )


def load_project(path: Path | str, environment: Mapping[str, str] | None = None) -> ProjectFile:
    """Read a project's file, and all files that the file names.

    Args:
        path: the file, or its directory.
        environment: default: the process's. Only variables that the file names are read; they win over .env.

    Raises:
        NotFound: no such file.
        InvalidInput: the file is not TOML.
        InvalidSpec: variables are not set, or files cannot be read; with all problems and their lines.
    """
    file = Path(path).expanduser().absolute()
    file = file / FILE_NAME if file.is_dir() else file
    text = read_text(file)
    reader = _Reader(file, load_toml(text, str(file)), os.environ if environment is None else environment)
    data = reader.read()
    if reader.problems:
        raise _located(_all_problems(reader.problems, data, reader.name), file, text, data)
    return ProjectFile(path=file, data=data, name=reader.name, _text=text)


class _Reader:
    def __init__(self, file: Path, data: dict[str, Any], environment: Mapping[str, str]) -> None:
        self.problems: list[Problem] = []
        self.name = ""
        self._file = file
        self._base = file.parent
        self._data = data
        self._environment = environment
        self._from_file: Mapping[str, str | None] | None = None

    def read(self) -> dict[str, Any]:
        from bough.spec.project.document import as_project, project_name

        data = self._replace_variables(as_project(self._data))
        extended = ExtendedFiles(self._file, self._resolve_part)
        for top in ("machines", "shared"):
            tables = data.get(top)
            if isinstance(tables, Mapping):
                data[top] = {key: self._resolve(top, key, table, extended) for key, table in tables.items()}
        if extended.parts:
            shared = data.get("shared", {})
            data["shared"] = {**shared, **extended.parts} if isinstance(shared, Mapping) else shared
        self.name = str(data.get("name") or project_name(self._base.name) or "project")
        return {"name": self.name, **data}

    # Variables

    def _replace_variables(self, data: Mapping[str, Any]) -> dict[str, Any]:
        from bough.spec.project.variables import replace_variables

        replaced = replace_variables(data, self._look_up)
        for place, message, hint in replaced.problems:
            self._tell(place, message, hint)
        return dict(replaced.data)

    def _look_up(self, name: str) -> str | None:
        if name in self._environment:
            return self._environment[name]
        if self._from_file is None:
            self._from_file = read_environment(self._base / ENVIRONMENT_FILE)
        return self._from_file.get(name)

    # Files

    def _resolve(self, top: str, key: str, table: Any, extended: ExtendedFiles) -> Any:
        """Return a machine's table with absolute paths, and with the content of files."""
        if not isinstance(table, Mapping):
            return table
        try:
            resolved = resolve_sources(table, self._base)
        except InvalidSpec as error:
            self._keep((top, key), error)
            resolved = dict(table)
        if "extends" in resolved:
            try:
                resolved["extends"] = extended.names(resolved["extends"])
            except BoughError as error:
                self._tell((top, key, "extends"), error.message, error.hint)
                del resolved["extends"]
        if isinstance(resolved.get("build"), str | Mapping):
            resolved["build"] = self._resolve_build((top, key, "build"), resolved["build"])
        if isinstance(resolved.get("lock"), str):
            try:
                resolved["lock"] = _read_lock(resolved["lock"], self._base)
            except BoughError as error:
                self._tell((top, key, "lock"), error.message, error.hint)
                del resolved["lock"]
        return resolved

    def _resolve_build(self, place: _PathIn, build: Any) -> Any:
        """Return the settings of a recipe: a file's, or the ones in the project's file."""
        try:
            return _resolve_recipe(build, self._base)
        except InvalidSpec as error:
            self._keep(place, error)
        except BoughError as error:
            self._tell(place, error.message, error.hint)
        return {"base": "debian:12"}  # an example, so that only the problem of the file is told

    def _resolve_part(self, table: Mapping[str, Any], base: Path) -> dict[str, Any]:
        """Return a table of another file, resolved as `_resolve` does. Raises BoughError."""
        from bough.spec.project.variables import replace_variables

        replaced = replace_variables(table, self._look_up)
        if replaced.problems:
            place, message, hint = replaced.problems[0]
            raise InvalidInput(f"{'.'.join(map(str, place))}: {message}", hint=hint)
        resolved = resolve_sources(replaced.data, base)
        if isinstance(resolved.get("build"), str | Mapping):
            resolved["build"] = _resolve_recipe(resolved["build"], base)
        if isinstance(resolved.get("lock"), str):
            resolved["lock"] = _read_lock(resolved["lock"], base)
        return resolved

    # Problems

    def _keep(self, place: _PathIn, error: InvalidSpec) -> None:
        from bough.spec.project.lines import split_place

        for one in error.problems:
            self._tell((*place, *split_place(one["place"])), one["message"], one["hint"])

    def _tell(self, place: _PathIn, message: str, hint: str | None = None) -> None:
        from bough.spec.problems import Problem, render_place

        self.problems.append(Problem(render_place(place), message, hint))


def _resolve_recipe(build: Any, base: Path) -> dict[str, Any]:
    """Return the settings of a recipe: of a file, or given. Raises BoughError: a file cannot be read."""
    if isinstance(build, str):
        path = base / Path(build).expanduser()
        return resolve_recipe(load_toml(path), path.parent)
    return resolve_recipe(build, base)


def _read_lock(lock: str, base: Path) -> dict[str, Any]:
    """Return the content of a lock. Raises BoughError: the file cannot be read."""
    return load_toml(base / Path(lock).expanduser())


def read_environment(path: Path) -> Mapping[str, str | None]:
    """Return the variables of a .env file; no file: none. Values are taken as they are written.

    Raises:
        InvalidInput: the file cannot be read, or lines are not NAME=VALUE.
    """
    try:
        with path.open("rb") as stream:
            content = stream.read(_MOST_ENVIRONMENT_BYTES + 1)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise InvalidInput(f"cannot read {path}: {error.strerror}", place=str(path)) from error
    try:
        text = content.decode()
    except UnicodeDecodeError:
        raise InvalidInput(f"{path} is not UTF-8", place=str(path)) from None
    if len(content) > _MOST_ENVIRONMENT_BYTES:
        raise InvalidInput(f"{path} is larger than 1 MiB", place=str(path))
    return dict(_variables(path, text))


def _variables(path: Path, text: str) -> Iterator[tuple[str, str | None]]:
    import io

    from dotenv.parser import parse_stream

    for binding in parse_stream(io.StringIO(text)):
        if binding.error:
            line = binding.original.line
            raise InvalidInput(
                f"{path}: line {line} is not NAME=VALUE", hint="quote a value with spaces", place=str(path)
            )
        if binding.key is not None:
            yield binding.key, binding.value


def _all_problems(found: list[Problem], data: Mapping[str, Any], name: str) -> InvalidSpec:
    """Return an error with the problems found, and with the problems that validation finds."""
    from bough.spec.problems import Problem, raise_if_any
    from bough.spec.project.parse import parse_project

    places = {problem.place for problem in found}
    more: list[Problem] = []
    try:
        parse_project(data, name=name)
    except InvalidSpec as error:
        # A text with a variable that is not set is no valid value; one problem of a setting is enough.
        more = [Problem(one["place"], one["message"], one["hint"]) for one in error.problems]
    try:
        raise_if_any([*found, *(one for one in more if one.place not in places)])
    except InvalidSpec as error:
        return error
    raise AssertionError("no problem to tell")


def _located(error: InvalidSpec, file: Path, text: str, data: Mapping[str, Any]) -> InvalidSpec:
    from bough.spec.project.places import Places

    return add_lines(error, file, Places(text, data).line)
