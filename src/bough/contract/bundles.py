"""Requests about machines in files: streams of bytes over a WebSocket."""

from __future__ import annotations

from typing import Literal

from bough.contract.request import Request, stream


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
