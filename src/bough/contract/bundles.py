"""Requests about machines in files (streams of bytes over a WebSocket) and in registries."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from bough.contract.request import Request, Route, stream

if TYPE_CHECKING:
    from bough.contract.answers import MachineInfo, Pushed


class ExportMachine(Request):
    """Send a machine, a project or a snapshot in a format. Text messages are progress, and at the end the
    result.
    """

    route = stream("/export")
    source: str
    format: Literal["bough", "qcow2", "ova"] = "bough"
    disks_only: bool = False
    without_image: bool = False


class ImportMachine(Request):
    """Create a machine or a project from the client's messages, a bundle; an empty message is the end of the
    bundle.
    """

    route = stream("/import")
    name: str | None = None
    identity: Literal["new", "keep"] = "keep"
    cold: bool = False
    force: bool = False
    accelerator: Literal["auto", "kvm", "tcg"] = "auto"
    wait: bool = True
    timeout_s: float | None = None


class PushMachine(Request):
    """Write a machine or a snapshot to a registry as an artifact of bough. `target` is a name like
    docker://HOST/REPO:TAG.
    """

    route = Route("POST", "/export/registry", "long")
    answer: ClassVar[Pushed]
    source: str
    target: str
    disks_only: bool = False


class PullMachine(Request):
    """Create the machine of an artifact in a registry."""

    route = Route("POST", "/import/registry", "long")
    answer: ClassVar[MachineInfo]
    origin: str
    name: str | None = None
    identity: Literal["new", "keep"] = "keep"
    cold: bool = False
    force: bool = False
    accelerator: Literal["auto", "kvm", "tcg"] = "auto"
    wait: bool = True
    timeout_s: float | None = None
