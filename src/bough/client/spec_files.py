"""The client's part of a spec: the client reads files and makes paths absolute.

The service reads no path that a client names, except kernel and initrd.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bough.errors import InvalidSpec

MAX_FILE_BYTES = 16 * 1024 * 1024


def resolve_sources(spec: Mapping[str, Any], base: Path | None = None) -> dict[str, Any]:
    """Return `spec` with absolute paths, and with the content of files instead of `source`.

    Args:
        base: the directory of the spec file, for relative paths. Default: the current directory.

    Raises:
        InvalidSpec: files cannot be read; names all of them.
    """
    base = base or Path.cwd()
    resolved = dict(spec)
    if isinstance(resolved.get("image"), str):
        resolved["image"] = resolve_image(resolved["image"], base)
    for name in ("kernel", "initrd"):
        value = resolved.get(name)
        if isinstance(value, str | Path) and str(value):
            resolved[name] = str(base / Path(value).expanduser())
    if isinstance(resolved.get("mounts"), list | tuple):
        resolved["mounts"] = [resolve_mount(mount, base) for mount in resolved["mounts"]]
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


def resolve_recipe(recipe: Mapping[str, Any], base: Path | None = None) -> dict[str, Any]:
    """Return `recipe` with the content of files, also of files of keys.

    Raises:
        InvalidSpec: files cannot be read.
    """
    base = base or Path.cwd()
    resolved = dict(recipe)
    if isinstance(recipe.get("base"), str):
        resolved["base"] = resolve_image(recipe["base"], base)
    if "files" in recipe:
        resolved |= resolve_sources({"files": recipe["files"]}, base)
    if isinstance(recipe.get("sources"), list | tuple):
        resolved["sources"] = [
            _resolve_key(source, base, f"sources[{index}].key")
            for index, source in enumerate(recipe["sources"])
        ]
    return resolved


def resolve_image(name: str, base: Path | None = None) -> str:
    """Return the name of an image; the path of a layout or an archive of container images is absolute.

    "oci:NAME" is a path if NAME looks like one (/, ./, ../, ~/), or if it is the directory of an OCI layout.
    """
    transport, colon, rest = name.partition(":")
    path, inside, tag = rest.partition(":")
    if not colon or not path or transport not in ("oci", "oci-archive", "docker-archive"):
        return name
    base = base or Path.cwd()
    looks_like_path = transport != "oci" or path.startswith(("/", "./", "../", "~/"))
    if not looks_like_path and not (base / path / "oci-layout").is_file():
        return name
    return f"{transport}:{base / Path(path).expanduser()}{inside}{tag}"


def _resolve_key(source: Any, base: Path, place: str) -> Any:
    key = source.get("key") if isinstance(source, Mapping) else None
    if not isinstance(key, str | Path) or "-----BEGIN" in str(key):
        return source
    path = base / Path(key).expanduser()
    try:
        return {**source, "key": _armour(_read(path))}
    except (OSError, ValueError) as error:
        message = f"cannot read {path}: {getattr(error, 'strerror', None) or error}"
        raise InvalidSpec(
            f"{place}: {message}", problems=[{"place": place, "message": message, "hint": None}]
        ) from error


def _armour(key: bytes) -> str:
    """Return an OpenPGP key as text (RFC 9580, 6.2; the checksum may be left out). Text stays unchanged."""
    import base64

    if b"-----BEGIN PGP" in key:
        return key.decode("ascii")
    if not key or not key[0] & 0x80:
        raise ValueError("the file is not an OpenPGP key")
    text = base64.b64encode(key).decode()
    lines = [text[at : at + 64] for at in range(0, len(text), 64)]
    begin, end = (f"-----{word} PGP PUBLIC KEY BLOCK-----" for word in ("BEGIN", "END"))
    return "\n".join([begin, "", *lines, end]) + "\n"


def resolve_mount(mount: Any, base: Path | None = None) -> Any:
    """Return a shared directory with an absolute source. The service reports malformed ones."""
    if isinstance(mount, str):
        from bough.spec.mounts import split_mount

        try:
            mount = split_mount(mount)
        except ValueError:
            return mount
    if not isinstance(mount, Mapping) or not isinstance(mount.get("source"), str | Path):
        return mount
    source = (base or Path.cwd()) / Path(mount["source"]).expanduser()
    return {**mount, "source": str(source)}


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
        raise ValueError("the file is larger than 16 MiB; copy it with `bough cp`")
    return content
