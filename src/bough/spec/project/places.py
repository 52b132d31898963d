"""The line of a setting that a message names, also of a setting that a machine takes over by `extends`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bough.spec.project.extends import Extended, resolve_extends
from bough.spec.project.lines import Path, find_lines, line_of, split_place


class Places:
    """Lines of a project's file.

    Args:
        text: the file.
        data: the file's data, as `parse_project` takes it.
    """

    def __init__(self, text: str, data: Mapping[str, Any]) -> None:
        self._lines = find_lines(text)
        self._extended: Extended = resolve_extends(data)

    def line(self, place: str) -> int | None:
        """Return the line of a place like "machines.db.memory"; None: the file has no such part."""
        path = split_place(place)
        if path[:1] == ("machines",) and ("machines",) not in self._lines:
            return line_of(path[2:], self._lines)  # a file of one machine
        return self._line(path)

    def _line(self, path: Path) -> int | None:
        if len(path) < 3 or path[0] != "machines":
            return line_of(path, self._lines)
        key, setting = str(path[1]), str(path[2])
        if (key, setting) in self._extended.joined:
            path = path[:3]
        origin = (*self._extended.origins.get((key, setting), path[:2]), *path[2:])
        for candidate in (path, origin):
            if candidate in self._lines:
                return self._lines[candidate]
        return line_of(origin if origin[:3] in self._lines else path, self._lines)
