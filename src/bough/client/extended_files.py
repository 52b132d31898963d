"""Tables of other files that a project extends: `extends = { file = "base.toml", machine = "server" }`.

Each such table becomes a shared part of the project, with its file in the name. So the service and the record
of the project need no other file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bough.errors import InvalidInput
from bough.spec.problems import did_you_mean, quote
from bough.spec.project.document import as_project
from bough.spec.project.extends import SOURCES
from bough.spec.toml import load_toml

_MOST_DEPTH = 20
#: A file, and the name of a table in the file.
_Table = tuple[Path, str]

#: Returns a table without variables, with absolute paths and the content of files. The second argument is the
#: directory of the table's file. Raises BoughError.
Resolve = Callable[[Mapping[str, Any], Path], dict[str, Any]]


class ExtendedFiles:
    """Attributes:
    parts: the shared parts from other files, by name.
    """

    def __init__(self, file: Path, resolve: Resolve) -> None:
        self.parts: dict[str, dict[str, Any]] = {}
        self._file = file
        self._resolve = resolve
        self._loaded: dict[Path, Mapping[str, Any]] = {}

    def names(self, extends: Any) -> Any:
        """Return a value of `extends` in the project's file with names instead of other files.

        Raises:
            InvalidInput: an entry makes no sense, or is a circle. BoughError: a file cannot be read.
        """
        entries = extends if isinstance(extends, list | tuple) else [extends]
        if not any(isinstance(entry, Mapping) for entry in entries):
            return extends
        return [
            self._import(entry, self._file, ()) if isinstance(entry, Mapping) else entry for entry in entries
        ]

    def _import(self, entry: Any, by: Path, above: tuple[_Table, ...]) -> str:
        """Keep the table that an entry of the file `by` means. Return the name of the shared part."""
        file, name = self._table_of(entry, by)
        part = f"{os.path.relpath(file, self._file.parent)}:{name}"
        if (file, name) in above:
            tables = (*above[above.index((file, name)) :], (file, name))
            circle = " -> ".join(f"{one.name}:{key}" for one, key in tables)
            raise InvalidInput(f"extends itself: {circle}", hint="remove one of these")
        if len(above) >= _MOST_DEPTH:
            raise InvalidInput(f"more than {_MOST_DEPTH} files extend each other")
        if part in self.parts:
            return part
        table = self._resolve(self._table(file, name), file.parent)
        value = table.pop("extends", [])
        entries = value if isinstance(value, list | tuple) else [value]
        names = [self._import(one, file, (*above, (file, name))) for one in entries]
        self.parts[part] = {**({"extends": names} if names else {}), **table}
        return part

    def _table_of(self, entry: Any, by: Path) -> _Table:
        if isinstance(entry, str):
            return by, entry
        if not isinstance(entry, Mapping) or set(entry) - {"file", "machine"} or "file" not in entry:
            raise InvalidInput(
                f'expected a name, or {{ file = "base.toml", machine = "server" }}, got {quote(entry)}'
            )
        words = [entry["file"], entry.get("machine", "")]
        if not all(isinstance(word, str) for word in words) or not words[0]:
            raise InvalidInput(f"expected a file and the name of a machine, got {quote(entry)}")
        file = Path(os.path.normpath(by.parent / Path(words[0]).expanduser()))
        return file, words[1] or self._only(file)

    def _only(self, file: Path) -> str:
        """Return the name of the only machine of a file."""
        machines = self._data(file).get("machines")
        names = list(machines) if isinstance(machines, Mapping) else []
        if len(names) != 1:
            raise InvalidInput(
                f"{file.name} has {len(names)} machines",
                hint=f'name one of them: {{ file = "{file.name}", machine = "{(names or ["db"])[0]}" }}',
            )
        return str(names[0])

    def _table(self, file: Path, name: str) -> Mapping[str, Any]:
        data, known = self._data(file), []
        for source in SOURCES:
            tables = data.get(source)
            if not isinstance(tables, Mapping):
                continue
            if isinstance(tables.get(name), Mapping):
                found: Mapping[str, Any] = tables[name]
                return found
            known += [str(key) for key in tables]
        raise InvalidInput(
            f"{file.name} has no machine and no shared part {quote(name)}", hint=did_you_mean(name, known)
        )

    def _data(self, file: Path) -> Mapping[str, Any]:
        if file not in self._loaded:
            self._loaded[file] = as_project(load_toml(file))
        return self._loaded[file]
