"""Problems of a spec in plain sentences. Only this module translates pydantic's errors."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import BaseModel
from pydantic_core import ErrorDetails, PydanticCustomError

from bough.errors import InvalidSpec

MOST_PROBLEMS = 50
IS_MISSING = "is missing"
NO_SUCH_SETTING = "no such setting"
_PLAIN_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")

# Names of the same settings in other programs. The nearest spelling would mislead or find nothing.
OTHER_NAMES = {
    "cpus": "vcpus",
    "cores": "vcpus",
    "smp": "vcpus",
    "cpu_count": "vcpus",
    "cpu_model": "cpu",
    "ram": "memory",
    "mem": "memory",
    "disk_size": "disk",
    "storage": "disk",
    "extra_disks": "disks",
    "volumes": "mounts",
    "shares": "mounts",
    "binds": "mounts",
    "env": "environment",
    "network": "nics",
    "networks": "nics",
    "net": "nics",
    "nic": "nics",
    "interfaces": "nics",
    "mac_address": "mac",
    "hwaddr": "mac",
    "append": "cmdline",
    "architecture": "arch",
    "accel": "accelerator",
    "publish": "ports",
    "forwards": "ports",
    "authorized_keys": "ssh_keys",
    "ssh_authorized_keys": "ssh_keys",
    "bios": "firmware",
    "run": "commands",
    "runcmd": "commands",
    "write_files": "files",
    "os": "image",
    "cmd": "command",
    "working_dir": "workdir",
    "cwd": "workdir",
    "publish_all": "publish_exposed",
    "permissions": "mode",
    "src": "source",
    "userdata": "user_data",
    "cloud_init": "user_data",
    "iso": "cdrom",
    "vga": "display",
    "graphics": "display",
    "dst": "target",
    "rw": "writable",
}

_EXPECTED = {
    "string": "text",
    "int": "a whole number",
    "bool": "true or false",
    "list": "a list",
    "tuple": "a list",
    "dict": "a table of names and values",
    "model": "a table of settings",
}


@dataclass(frozen=True)
class Problem:
    """A problem: the place ("disks[0].size"; "" is the whole spec), the expected value, a hint."""

    place: str
    message: str
    hint: str | None = None


def told(message: str, hint: str | None = None) -> PydanticCustomError:
    """Return an error for a field's validator to raise; the user sees the text unchanged."""
    return PydanticCustomError("told", "{message}", {"message": message, "hint": hint})


def quote(value: Any) -> str:  # noqa: PLR0911 (a table)
    """Return a value for a message: short, on one line, in the notation of the spec."""
    match value:
        case None:
            return "nothing"
        case bool():
            return "true" if value else "false"
        case int() | float():
            return str(value)[:40]
        case str():
            return repr(value if len(value) <= 40 else value[:37] + "...")
        case Mapping():
            return "a table"
        case Sequence():
            return "a list"
        case _:
            return f"a {type(value).__name__}"


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that `name` probably means."""
    names = list(known)
    other = OTHER_NAMES.get(name.lower().replace("-", "_"))
    if other in names:
        return other
    folded = {candidate.lower().replace("-", "_"): candidate for candidate in names}
    found = difflib.get_close_matches(name.lower().replace("-", "_"), list(folded), n=1, cutoff=0.6)
    return folded[found[0]] if found else None


def did_you_mean(name: str, known: Iterable[str]) -> str | None:
    names = list(known)
    found = nearest(name, names)
    if found is not None:
        return f"did you mean {found!r}?"
    return f"known: {', '.join(sorted(names))}" if 0 < len(names) <= 30 else None


def render_place(parts: Iterable[str | int], prefix: str = "") -> str:
    """Render ("disks", 0, "size") as "disks[0].size"."""
    place = prefix
    for part in parts:
        if isinstance(part, int):
            place += f"[{part}]"
        elif _PLAIN_KEY.fullmatch(part) and len(part) <= 64:
            place += f".{part}" if place else part
        else:
            place += f"[{json.dumps(part[:64])}]"
    return place


def translate(error: ErrorDetails, model: type[BaseModel], prefix: str = "") -> Problem:
    """Translate one of pydantic's errors about `model` to a Problem."""
    parts = [part for part in error["loc"] if part != "[key]"]
    place = render_place(parts, prefix)
    kind, value, context = error["type"], error.get("input"), error.get("ctx") or {}
    if kind == "told":
        return Problem(place, context["message"], context["hint"])
    if kind == "missing":
        return Problem(place, IS_MISSING, _example(str(parts[-1])))
    if kind == "extra_forbidden":
        known = _settings_at(model, parts[:-1])
        return Problem(place, NO_SUCH_SETTING, did_you_mean(str(parts[-1]), known))
    if kind == "literal_error":
        allowed = re.findall(r"'([^']*)'", str(context["expected"]))
        hint = did_you_mean(value, allowed) if isinstance(value, str) else None
        hint = hint if hint and hint.startswith("did you mean") else None
        return Problem(place, f"expected one of {', '.join(map(repr, allowed))}, got {quote(value)}", hint)
    if kind in ("too_long", "too_short"):
        bound = f"most {context['max_length']}" if kind == "too_long" else f"least {context['min_length']}"
        return Problem(place, f"expected at {bound} entries, got {context['actual_length']}")
    expected = _EXPECTED.get(kind.split("_", maxsplit=1)[0], "another kind of value")
    hint = None
    if expected == "text" and isinstance(value, int | float) and not isinstance(value, bool):
        hint = f'write it in quotes: "{str(value)[:40]}"'
    if expected == "a list" and isinstance(value, str):
        hint = f"write it in brackets: [{json.dumps(value[:40])}]"
    return Problem(place, f"expected {expected}, got {quote(value)}", hint)


def raise_if_any(problems: list[Problem]) -> None:
    """Raise InvalidSpec with all problems, in the given order; do nothing without problems."""
    if not problems:
        return
    shown = problems[:MOST_PROBLEMS]
    if len(problems) > MOST_PROBLEMS:
        shown.append(Problem("", f"and {len(problems) - MOST_PROBLEMS} more problems"))
    if len(problems) == 1:
        only = problems[0]
        message = f"{only.place}: {only.message}" if only.place else only.message
        raise InvalidSpec(message, hint=only.hint, problems=[asdict(only)])
    raise InvalidSpec(f"the spec has {len(problems)} problems", problems=[asdict(one) for one in shown])


def _settings_at(model: type[BaseModel], parts: Sequence[str | int]) -> list[str]:
    """Return the settings that the table at `parts` may have."""
    for part in parts:
        if isinstance(part, str):
            model = _tables(model)[part]
    return list(model.model_fields)


def _tables(model: type[BaseModel]) -> dict[str, type[BaseModel]]:
    """Return the settings of `model` that are tables, or lists of tables, with the model of such a table."""
    found: dict[str, type[BaseModel]] = {}
    for name, field in model.model_fields.items():
        for argument in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(argument, type) and issubclass(argument, BaseModel):
                found[name] = argument
    return found


_EXAMPLES = {
    "image": 'image = "debian:12"',
    "size": 'size = "10GiB"',
    "path": 'path = "/etc/motd"',
    "name": 'name = "admin"',
    "guest_port": "guest_port = 80",
}


def _example(name: str) -> str | None:
    return f"for example {_EXAMPLES[name]}" if name in _EXAMPLES else None
