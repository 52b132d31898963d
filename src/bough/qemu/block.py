"""Block nodes of a disk: one description, rendered for the command line and for QMP.

A disk file has two nodes (docs/system/qemu-block-drivers): the format's node `disk0` over the file's node
`disk0-file`. The host's page cache is used; a flush of the guest reaches the host's disk.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Format = Literal["raw", "qcow2"]


@dataclass(frozen=True)
class DiskNode:
    """The two nodes of a disk file.

    Attributes:
        name: of the format's node; the file's node is called `<name>-file`.
        discard: blocks that the guest discards are freed on the host.
        backing: name of the backing file's node.
    """

    name: str
    path: str
    format: Format
    read_only: bool = False
    discard: bool = False
    backing: str | None = None

    @property
    def file_name(self) -> str:
        return f"{self.name}-file"

    def qmp_options(self) -> dict[str, Any]:
        """Return the options of blockdev-add, which adds both nodes. QEMU removes the file's node with the
        format's.

        The file's node inherits read-only: blockdev-snapshot makes the format's node read-only, and QEMU
        reopens the file then, while the path still exists.
        """
        return {**self.format_options(self.file_name), "file": self._file_options({})}

    def format_options(self, file: str) -> dict[str, Any]:
        """Return the options of the format's node over the node `file`, for blockdev-reopen."""
        return self._format_options(file, {"read-only": True} if self.read_only else {})

    def arguments(self) -> list[str]:
        """Return the command-line words that add both nodes."""
        access = {"read-only": self.read_only, "auto-read-only": False}
        parts = (self._file_options(access), self._format_options(self.file_name, access))
        return [word for part in parts for word in ("-blockdev", render_option("", part))]

    def _file_options(self, access: dict[str, Any]) -> dict[str, Any]:
        named = {"driver": "file", "node-name": self.file_name, "filename": self.path}
        return {**named, **access, **self._discard(), "aio": "threads"}

    def _format_options(self, file: str, access: dict[str, Any]) -> dict[str, Any]:
        options = {"driver": self.format, "node-name": self.name, "file": file, **access, **self._discard()}
        # Null, too: otherwise QEMU opens the file that the qcow2 header names.
        return {**options, "backing": self.backing} if self.format == "qcow2" else options

    def _discard(self) -> dict[str, Any]:
        return {"discard": "unmap"} if self.discard else {}


def overlay_node(path: str, file: str, *, backing: str | None = None) -> DiskNode:
    """The nodes of a machine's overlay `path`, whose file is called `file` ("0-1a2b.qcow2")."""
    return DiskNode("disk" + file.removesuffix(".qcow2"), path, "qcow2", discard=True, backing=backing)


def render_option(first: str, values: Mapping[str, str | int | bool | None]) -> str:
    """QEMU's key=value syntax. A comma in a value is doubled, None is left out, True is "on".

    >>> render_option("guest", {"name": "a,b", "debug-threads": True})
    'guest,name=a,,b,debug-threads=on'
    """
    words = [first] if first else []
    words += [f"{key}={escape(_word(value))}" for key, value in values.items() if value is not None]
    return ",".join(words)


def escape(value: str) -> str:
    return value.replace(",", ",,")


def _word(value: str | int | bool) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(value)
