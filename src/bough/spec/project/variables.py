"""Variables in a project's texts: ${NAME}, as in Compose. Imports no pydantic.

    ${NAME}             the value; a problem if NAME is not set
    ${NAME:-default}    the default if NAME is not set or empty; ${NAME-default}: if not set
    ${NAME:?message}    a problem with the message if NAME is not set or empty; ${NAME?message}: if not set
    ${NAME:+other}      `other` if NAME is set and not empty; ${NAME+other}: if set
    $$                  a dollar sign

A default may contain variables. A dollar sign before another character stands for itself: the guest's
shell reads $HOME in `commands`. Only variables that the file names are looked up.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

#: Settings that are numbers or truth values. A text that is made from a variable is converted there.
NUMBERS = frozenset(
    ("vcpus", "scale", "retries", "mtu", "host_port", "guest_port", "port", "iops", "console", "cache")
)
SWITCHES = frozenset(
    (
        *("display", "uplink", "autostart", "require_jail", "sudo", "writable", "disable"),
        *("recommends", "agent", "cloud_init", "hyperv", "publish_exposed", "secure_boot", "tpm", "internal"),
    )
)
_START = re.compile(r"\$(?:\$|\{)")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_OPERATOR = re.compile(r":?[-?+]")
_MOST_DEPTH = 10
#: Names of variables and files; the values are texts of the user.
_VERBATIM = ("environment",)

Lookup = Callable[[str], "str | None"]
Place = tuple[str | int, ...]


@dataclass
class Replaced:
    """Data without variables. `problems` is a list of (place, message, hint)."""

    data: Any
    problems: list[tuple[Place, str, str | None]] = field(default_factory=list)


class BadVariable(Exception):
    """A variable cannot be replaced."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


def replace_variables(data: Any, lookup: Lookup) -> Replaced:
    """Return a copy of `data`, in which all texts have the values of variables; keys stay as they are."""
    replaced = Replaced(None)
    replaced.data = _replace(data, (), lookup, replaced)
    return replaced


def replace_in_text(text: str, lookup: Lookup, depth: int = 0) -> str:
    """Raises BadVariable: a variable is not set, or a name is malformed."""
    found: list[str] = []
    at = 0
    while (start := _START.search(text, at)) is not None:
        found.append(text[at : start.start()])
        if start.group() == "$$":
            found.append("$")
            at = start.end()
            continue
        end = _end_of(text, start.end())
        found.append(_value(text[start.end() : end], lookup, depth))
        at = end + 1
    return "".join([*found, text[at:]])


def names_in(data: Any) -> set[str]:
    """Return the names of all variables in the texts of `data`."""
    names: set[str] = set()

    def note(name: str) -> str:
        names.add(name)
        return ""

    for text in _texts(data):
        try:
            replace_in_text(text, note)
        except BadVariable:
            continue
    return names


def _end_of(text: str, at: int) -> int:
    """Return the position of the brace that closes a variable."""
    depth = 1
    while at < len(text):
        if text.startswith("${", at):
            depth += 1
        elif text[at] == "}":
            depth -= 1
            if depth == 0:
                return at
        at += 1
    raise BadVariable("'${' without a '}'", "write $$ for a dollar sign")


def _value(inner: str, lookup: Lookup, depth: int) -> str:
    name = _NAME.match(inner)
    operator = _OPERATOR.match(inner, name.end()) if name else None
    if name is None or (operator is None and name.end() != len(inner)):
        shown = "${" + inner[:40] + "}"
        raise BadVariable(f"{shown!r} names no variable", f"for the guest's shell, write ${shown}")
    if depth > _MOST_DEPTH:
        raise BadVariable("variables are nested too deep")
    value = lookup(name.group())
    word = operator.group() if operator else ""
    rest = inner[operator.end() :] if operator else ""
    is_given = bool(value) if word.startswith(":") else value is not None
    if word.endswith("+"):
        return replace_in_text(rest, lookup, depth + 1) if is_given else ""
    if is_given:
        return value or ""
    if word.endswith("-"):
        return replace_in_text(rest, lookup, depth + 1)
    if word.endswith("?") and rest:
        raise BadVariable(f"{name.group()}: {rest[:200]}", _how_to_set(name.group()))
    state = "is empty" if value == "" else "is not set"
    raise BadVariable(f"the variable {name.group()} {state}", _how_to_set(name.group()))


def _how_to_set(name: str) -> str:
    return f"set it in the environment or in .env, or write ${{{name}:-default}}; $${{{name}}} is the guest's"


def _replace(value: Any, place: Place, lookup: Lookup, replaced: Replaced) -> Any:
    if isinstance(value, str):
        return _replace_one(value, place, lookup, replaced)
    if isinstance(value, Mapping):
        return {key: _replace(one, (*place, key), lookup, replaced) for key, one in value.items()}
    if isinstance(value, list):
        return [_replace(one, (*place, index), lookup, replaced) for index, one in enumerate(value)]
    # TOML's dates and times are no values of JSON.
    return value if value is None or isinstance(value, bool | int | float) else str(value)


def _replace_one(text: str, place: Place, lookup: Lookup, replaced: Replaced) -> Any:
    if "$" not in text:
        return text
    try:
        result = replace_in_text(text, lookup)
    except BadVariable as error:
        replaced.problems.append((place, error.message, error.hint))
        return text
    return _convert(result, place) if "${" in text else result


def _convert(text: str, place: Place) -> Any:
    """Return a number or a truth value where the setting at `place` is one."""
    name = place[-1] if place else ""
    if len(place) > 1 and place[-2] in _VERBATIM:
        return text
    if name in NUMBERS and re.fullmatch(r"\d{1,9}", text):
        return int(text)
    if name in SWITCHES and text in ("true", "false"):
        return text == "true"
    return text


def _texts(data: Any) -> Iterator[str]:
    if isinstance(data, str):
        yield data
    elif isinstance(data, Mapping):
        for value in data.values():
            yield from _texts(value)
    elif isinstance(data, list):
        for value in data:
            yield from _texts(value)
