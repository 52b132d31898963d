"""The forms of a project's data: a file of machines, or a file of one machine. Imports no pydantic."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

#: The machine of a file that describes one machine without a name.
ONLY_MACHINE = "main"
_MOST_NAME = 40
_TOPS = ("networks", "shared")


def as_project(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the data of a project; a machine's data becomes a project of one machine.

    The machine's `name` is its role. The project has no name then.
    """
    if "machines" in data or not ({"image", "build"} & set(data)):
        return dict(data)
    machine = {key: value for key, value in data.items() if key != "name" and key not in _TOPS}
    name = data.get("name")
    role = name if isinstance(name, str) and name else ONLY_MACHINE
    return {"machines": {role: machine}, **{top: data[top] for top in _TOPS if top in data}}


def project_name(directory: str) -> str | None:
    """Return the name of a project in a directory; None: the directory's name has no letter and no digit."""
    name = re.sub(r"[^a-z0-9]+", "-", directory.lower()).strip("-")[:_MOST_NAME].rstrip("-")
    return name or None
