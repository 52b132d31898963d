"""Export a machine to a file or a registry, and import the machine again."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

from bough.client.connection import Connection, report_progress
from bough.client.websocket import WebSocket
from bough.contract.bundles import ExportMachine, ImportMachine, PullMachine, PushMachine
from bough.errors import BoughError, InvalidInput, ServiceUnavailable, error_from_dict

if TYPE_CHECKING:
    from bough.contract.answers import Pushed
    from bough.progress import Report

Format = Literal["bough", "qcow2", "ova"]
_READ_BYTES = 256 * 1024


def format_of(name: str) -> Format:
    """Return the format that the end of the file name selects. Raises InvalidInput."""
    formats: tuple[Format, ...] = ("bough", "qcow2", "ova")
    for format in formats:
        if name.endswith(f".{format}"):
            return format
    raise InvalidInput(
        f"{name!r} ends in none of .bough, .qcow2, .ova",
        hint="name the file *.bough for a machine to import, *.qcow2 or *.ova for other hypervisors; "
        "docker://HOST/REPOSITORY:TAG is a place in a registry",
    )


def export_file(
    api: Connection,
    source: str,
    path: str | os.PathLike[str],
    *,
    disks_only: bool = False,
    without_image: bool = False,
    progress: Report | None = None,
) -> int:
    """Export to a file, which appears complete or not at all. Return the file's size in bytes."""
    target = Path(path).expanduser().absolute()
    format = format_of(target.name)
    made = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with made.open("xb") as stream:
            count = export_stream(
                api,
                source,
                stream,
                format=format,
                disks_only=disks_only,
                without_image=without_image,
                progress=progress,
            )
            stream.flush()
            os.fsync(stream.fileno())
        made.rename(target)
        return count
    except OSError as error:
        from bough.client.copying.errors import raise_of_host

        raise_of_host(error, str(target))
    finally:
        made.unlink(missing_ok=True)


def export_stream(
    api: Connection,
    source: str,
    stream: IO[bytes],
    *,
    format: Format = "bough",
    disks_only: bool = False,
    without_image: bool = False,
    progress: Report | None = None,
) -> int:
    request = ExportMachine(source=source, format=format, disks_only=disks_only, without_image=without_image)
    with api.open(request) as socket:
        return int(_until_result(socket, stream.write, progress)["bytes"])


def import_stream(
    api: Connection,
    stream: IO[bytes],
    *,
    name: str | None = None,
    identity: Literal["keep", "new"] = "keep",
    cold: bool = False,
    force: bool = False,
    accelerator: Literal["auto", "kvm", "tcg"] = "auto",
    wait: bool = True,
    timeout: float | None = None,
    progress: Report | None = None,
) -> dict[str, Any]:
    """Send a bundle to the service. Return the machine's description."""
    request = ImportMachine(
        name=name,
        identity=identity,
        cold=cold,
        force=force,
        accelerator=accelerator,
        wait=wait,
        timeout_s=timeout,
    )
    with api.open(request) as socket:
        feeding = threading.Thread(target=_feed, args=(socket, stream), daemon=True)
        feeding.start()
        return dict(_until_result(socket, None, progress))


def is_in_registry(place: str | os.PathLike[str]) -> bool:
    """Return whether a machine's place is in a registry: "docker://HOST/REPOSITORY:TAG"."""
    return os.fspath(place).startswith(("docker://", "oci:"))


def export_to_registry(
    api: Connection,
    source: str,
    target: str | os.PathLike[str],
    *,
    disks_only: bool = False,
    without_image: bool = False,
    progress: Report | None = None,
) -> Pushed:
    """Write a machine or a snapshot to a registry.

    Raises:
        InvalidInput: `without_image` is for files.
    """
    from bough.contract.answers import Pushed

    if without_image:
        raise InvalidInput(
            "an export to a registry cannot leave the image out",
            hint="push the image to the same repository first: its chunks are then not sent again",
        )
    request = PushMachine(source=source, target=os.fspath(target), disks_only=disks_only)
    return Pushed.from_dict(api.send_long(request, progress=progress))


def import_from(api: Connection, path: str | os.PathLike[str], **options: Any) -> dict[str, Any]:
    """Create the machine of a file or of an artifact in a registry. Return the machine's description."""
    if is_in_registry(path):
        return import_from_registry(api, path, **options)
    with open(path, "rb") as stream:  # noqa: PTH123 (a str stays one)
        return import_stream(api, stream, **options)


def import_from_registry(
    api: Connection,
    origin: str | os.PathLike[str],
    *,
    name: str | None = None,
    identity: Literal["keep", "new"] = "keep",
    cold: bool = False,
    force: bool = False,
    accelerator: Literal["auto", "kvm", "tcg"] = "auto",
    timeout: float | None = None,
    progress: Report | None = None,
) -> dict[str, Any]:
    """Create the machine of an artifact in a registry. Return the machine's description."""
    request = PullMachine(
        origin=os.fspath(origin),
        name=name,
        identity=identity,
        cold=cold,
        force=force,
        accelerator=accelerator,
        timeout_s=timeout,
    )
    return dict(api.send_long(request, progress=progress))


def _feed(socket: WebSocket, stream: IO[bytes]) -> None:
    # A service that refuses the bundle stops reading. The reader thread raises the service's error.
    with contextlib.suppress(BoughError, OSError, ValueError):
        while data := stream.read(_READ_BYTES):
            socket.send(data)
        socket.send(b"")


def _until_result(socket: WebSocket, take: Any, progress: Report | None) -> Any:
    while (message := socket.receive()) is not None:
        if isinstance(message, bytes):
            take(message)
            continue
        told = json.loads(message)
        if "result" in told:
            return told["result"]
        if "error" in told:
            raise error_from_dict(told["error"])
        if progress is not None and "progress" in told:
            report_progress(progress, told["progress"])
    raise ServiceUnavailable("the service ended in the middle", hint="see service.log in BOUGH_HOME")
