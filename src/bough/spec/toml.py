"""Load spec files, and merge flags into them. Imports no pydantic: the command line reads files, too."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bough.errors import InvalidInput, NotFound

MOST_TOML_BYTES = 4 * 1024 * 1024
_LISTS = ("nics", "disks", "users", "ssh_keys", "files", "commands", "ports", "mounts")


def load_toml(source: Path | str, where: str = "") -> dict[str, Any]:
    """Return the tables of a file (a Path) or of a text (a str).

    Args:
        where: name of the text, for messages.

    Raises:
        NotFound: no such file.
        InvalidInput: the file cannot be read, is not UTF-8, or is not TOML; the message has the line.
    """
    import tomllib

    where = where or (str(source) if isinstance(source, Path) else "the text")
    text = read_text(source) if isinstance(source, Path) else source
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidInput(
            f"{where} is not TOML: {_sentence(error)}",
            hint='a setting is a line like: memory = "512MiB"',
            place=where,
        ) from error
    except RecursionError:
        raise InvalidInput(f"{where} is not TOML: nested too deep", place=where) from None


def merge(file: Mapping[str, Any], flags: Mapping[str, Any]) -> dict[str, Any]:
    """Merge flags into a file's settings: lists grow, environments merge, others are replaced."""
    merged = dict(file)
    for name, value in flags.items():
        before = merged.get(name)
        if name in _LISTS and isinstance(before, list) and isinstance(value, list | tuple):
            merged[name] = [*before, *value]
        elif name == "environment" and isinstance(before, Mapping) and isinstance(value, Mapping):
            merged[name] = {**before, **value}
        else:
            merged[name] = value
    return merged


def render_lock(lock: Mapping[str, Any]) -> str:
    """Render a `PackageLock` as TOML. The same lock always gives the same text."""
    lines = [
        "# Versions of packages, written by `bough image lock`.",
        "# `bough image build ... --lock FILE` installs them again.",
        "lock = 1",
        *(f'{name} = "{lock[name]}"' for name in ("arch", "recipe", "digest", "base") if lock.get(name)),
    ]
    for table in ("packages", "boot_loader"):
        if lock.get(table):
            lines += ["", f"[{table}]", *(f'"{name}" = "{v}"' for name, v in sorted(lock[table].items()))]
    return "\n".join(lines) + "\n"


def read_text(path: Path) -> str:
    """Return the content of a TOML file. Raises NotFound, InvalidInput: see `load_toml`."""
    try:
        with path.open("rb") as file:
            content = file.read(MOST_TOML_BYTES + 1)
    except FileNotFoundError:
        raise NotFound(f"no file {path}", place=str(path)) from None
    except OSError as error:
        raise InvalidInput(f"cannot read {path}: {error.strerror}", place=str(path)) from error
    if len(content) > MOST_TOML_BYTES:
        raise InvalidInput(f"{path} is larger than 4 MiB: not a spec", place=str(path))
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise InvalidInput(f"{path} is not TOML: line {line} is not UTF-8", place=str(path)) from None


def _sentence(error: Exception) -> str:
    text = str(error)
    return text[:1].lower() + text[1:]
