"""The line of each setting in a TOML file, for messages. Python's tomllib knows no lines.

The grammar of tree-sitter is loaded only for a file with problems.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tree_sitter import Node

Path = tuple[str | int, ...]


def find_lines(text: str) -> dict[Path, int]:
    """Return the line, from 1, of each table, setting and entry: ("machines", "db", "ports", 0) -> 7."""
    import tree_sitter_toml
    from tree_sitter import Language, Parser

    tree = Parser(Language(tree_sitter_toml.language())).parse(text.encode())
    lines: dict[Path, int] = {}
    counts: dict[Path, int] = {}
    for node in tree.root_node.named_children:
        if node.type == "pair":
            _note_pair(node, (), lines)
        elif node.type in ("table", "table_array_element"):
            path = _table_path(node, counts)
            _note(path, node, lines)
            for pair in node.named_children[1:]:
                _note_pair(pair, path, lines)
    return lines


def line_of(path: Path, lines: Mapping[Path, int]) -> int | None:
    """Return the line of a setting, or of the nearest table or list around the setting that has a line."""
    for end in range(len(path), 0, -1):
        if path[:end] in lines:
            return lines[path[:end]]
    return None


def split_place(place: str) -> Path:
    """Return the parts of a place in a message: 'machines.db.ports[0]' -> ("machines", "db", "ports", 0)."""
    import json
    import re

    parts: list[str | int] = []
    for match in re.finditer(r'\[(\d+)\]|\[("(?:[^"\\]|\\.)*")\]|([^.\[\]]+)', place):
        number, quoted, plain = match.groups()
        parts.append(int(number) if number else json.loads(quoted) if quoted else plain)
    return tuple(parts)


def _table_path(node: Node, counts: dict[Path, int]) -> Path:
    """Return the path of a table's header, with the indexes of the arrays of tables above."""
    path: Path = ()
    for word in _words(node.named_children[0]):
        path = (*path, word)
        if path in counts:
            path = (*path, counts[path])
    if node.type == "table_array_element":
        if path and isinstance(path[-1], int):
            path = path[:-1]
        counts[path] = counts.get(path, -1) + 1
        path = (*path, counts[path])
    return path


def _note_pair(node: Node, path: Path, lines: dict[Path, int]) -> None:
    if node.type != "pair":
        return
    key, value = node.named_children[0], node.named_children[-1]
    for word in _words(key):
        path = (*path, word)
        _note(path, node, lines)
    _note_value(value, path, lines)


def _note_value(node: Node, path: Path, lines: dict[Path, int]) -> None:
    if node.type == "inline_table":
        for pair in node.named_children:
            _note_pair(pair, path, lines)
    elif node.type == "array":
        entries = [one for one in node.named_children if one.type != "comment"]
        for index, entry in enumerate(entries):
            _note((*path, index), entry, lines)
            _note_value(entry, (*path, index), lines)


def _note(path: Path, node: Node, lines: dict[Path, int]) -> None:
    for end in range(1, len(path) + 1):
        lines.setdefault(path[:end], node.start_point.row + 1)
    lines[path] = min(lines[path], node.start_point.row + 1)


def _words(node: Node) -> Iterator[str]:
    """Yield the words of a key: a bare key, a quoted key, or several with dots between them."""
    if node.type == "dotted_key":
        for child in node.named_children:
            yield from _words(child)
    else:
        yield _plain(node)


def _plain(node: Node) -> str:
    import tomllib

    text = (node.text or b"").decode()
    if node.type == "bare_key":
        return text
    value: Any = tomllib.loads(f"key = {text}")["key"]
    return str(value)
