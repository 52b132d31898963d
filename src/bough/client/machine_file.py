"""A file with the settings of one machine, for `create`, `run` and `set`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from bough.client.problem_lines import add_lines, problems_of
from bough.client.spec_files import resolve_sources
from bough.errors import InvalidInput, InvalidSpec
from bough.spec.toml import load_toml, read_text

E = TypeVar("E", bound=InvalidInput)


@dataclass(frozen=True)
class MachineFile:
    """A machine's file, read.

    Attributes:
        path: of the file.
        data: the settings, with absolute paths, and with the content of files.
    """

    path: Path
    data: dict[str, Any]
    _text: str = field(repr=False, default="")

    def locate(self, error: E, sent: Mapping[str, Any]) -> E:
        """Return the error with the file's line of each problem, as `line`, and with `file`.

        Args:
            error: if all its problems are about options, the error is returned as it is.
            sent: the settings of the file and of the options together.
        """
        from bough.spec.project.lines import find_lines, line_of, split_place

        places = [split_place(str(one["place"])) for one in problems_of(error)]
        if all(self._is_from_option(place, sent) for place in places):
            return error
        lines = find_lines(self._text)

        def find(place: str) -> int | None:
            path = split_place(place)
            return None if self._is_from_option(path, sent) else line_of(path, lines)

        located = add_lines(error, self.path, find)
        if len(places) > 1 and any(self._is_from_option(place, sent) for place in places):
            # "machine.toml has 3 problems" would blame the file for options.
            return type(error)(error.message, hint=error.hint, **located.details)
        return located

    def _is_from_option(self, place: tuple[str | int, ...], sent: Mapping[str, Any]) -> bool:
        """Return whether the value at a place of the settings is an option's."""
        top = str(place[0]) if place else ""
        if top not in sent:
            return False
        own, value = self.data.get(top), sent[top]
        if own == value:
            return False
        if isinstance(own, list) and len(place) > 1:
            return not isinstance(place[1], int) or place[1] >= len(own)
        if isinstance(own, Mapping) and isinstance(value, Mapping) and len(place) > 1:
            return own.get(place[1]) != value.get(place[1])
        return True


def load_machine_file(path: Path) -> MachineFile:
    """Read a machine's file, and all files that the file names.

    Raises:
        NotFound: no such file.
        InvalidInput: the file is not TOML; the message has the line.
        InvalidSpec: files cannot be read; with all problems and their lines.
    """
    text = read_text(path)
    given = load_toml(text, str(path))
    try:
        # A relative path starts at the directory of the file.
        data = resolve_sources(given, path.absolute().parent)
    except InvalidSpec as error:
        raise MachineFile(path, given, text).locate(error, given) from None
    return MachineFile(path, data, text)
