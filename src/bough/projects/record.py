"""The record of a project: projects/<id>.json."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from bough.storage import write_atomically


class ProjectRecord(BaseModel):
    """Attributes:
    name: unique in the home.
    domain: the project's name in its file. DNS names end so, also in a fork of the project.
    file: path of the file on the client's host, for display; None: the project came without a file.
    spec: the content of the file with variables and defaults filled in, as JSON.
    applied: role -> the machine's settings in the file from which the machine was made, or changed last.
    machines: role -> machine id. networks: name -> network id.
    loopback: address of the host, like "127.5.6.7", on which the project's ports are published.
    snapshot: id of the project's snapshot that the project was forked from.
    made: false while a fork is being made, or a project removed. Such a project is removed whole when the
        service starts.
    """

    # A record of a newer bough may have more fields; a rewrite keeps them.
    model_config = ConfigDict(extra="allow")

    version: int = 1
    id: str
    name: str
    domain: str
    file: str | None = None
    spec: dict[str, Any]
    applied: dict[str, dict[str, Any]] = Field(default_factory=dict)
    machines: dict[str, str] = Field(default_factory=dict)
    networks: dict[str, str] = Field(default_factory=dict)
    loopback: str
    snapshot: str | None = None
    ephemeral: bool = False
    made: bool = True
    created: str

    def write(self, path: Path) -> None:
        write_atomically(path, self.model_dump_json(indent=1).encode() + b"\n")

    @classmethod
    def read(cls, path: Path) -> ProjectRecord:
        """Read the record. Raises OSError, ValueError: the record is missing, damaged, or
        another project's.
        """
        record = cls.model_validate_json(path.read_bytes())
        if record.id != path.stem:
            raise ValueError(f"it belongs to project {record.id[:80]!r}")
        return record


def new_project_id() -> str:
    return secrets.token_hex(6)


def machine_name(project: str, role: str) -> str:
    """Return the name in the home of a project's machine."""
    return f"{project}-{role}"
