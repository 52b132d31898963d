"""What of a spec is on the client's side: files are read here, paths made absolute here.

The service reads no path that a client names but kernel and initrd.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bough.errors import InvalidSpec

MAX_FILE_BYTES = 16 * 1024 * 1024


def resolve_sources(spec: Mapping[str, Any], base: Path | None = None) -> dict[str, Any]:
    """`spec` with `source` of its files replaced by their content, and its paths absolute.

    Args:
        base: what relative paths start from: the directory of the spec file. Default: the current one.

    Raises:
        InvalidSpec: files that cannot be read; all of them at once.
    """
    base = base or Path.cwd()
    resolved = dict(spec)
    for name in ("kernel", "initrd"):
        value = resolved.get(name)
        if isinstance(value, str | Path) and str(value):
            resolved[name] = str(base / Path(value).expanduser())
    problems: list[dict[str, str | None]] = []
    if isinstance(resolved.get("files"), list | tuple):
        resolved["files"] = [
            _resolve_file(file, base, f"files[{index}].source", problems)
            for index, file in enumerate(resolved["files"])
        ]
    if problems:
        first = problems[0]
        message = (
            f"{first['place']}: {first['message']}"
            if len(problems) == 1
            else "files of the spec cannot be read"
        )
        raise InvalidSpec(message, problems=problems)
    return resolved


def _resolve_file(file: Any, base: Path, place: str, problems: list[dict[str, str | None]]) -> Any:
    if not isinstance(file, Mapping) or not isinstance(file.get("source"), str | Path):
        return file
    if file.get("content") is not None or file.get("content_base64") is not None:
        problems.append(
            {"place": place, "message": "expected either source or content, got both", "hint": None}
        )
        return file
    import base64

    path = base / Path(file["source"]).expanduser()
    try:
        content = _read(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        problems.append({"place": place, "message": f"cannot read {path}: {reason}", "hint": None})
        return file
    sent = {name: value for name, value in file.items() if name != "source"}
    return {**sent, "content_base64": base64.b64encode(content).decode()}


def _read(path: Path) -> bytes:
    with path.open("rb") as stream:
        content = stream.read(MAX_FILE_BYTES + 1)
    if len(content) > MAX_FILE_BYTES:
        raise ValueError("it is larger than 16 MiB; copy it with `bough cp`")
    return content
